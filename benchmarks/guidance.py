"""What an update of attention guidance adds to a step: operations, time and memory.

A step is one with fusers and both branches of classifier-free guidance. An update reads one branch:
it computes the U-Net up to the last map that the method reads, and the gradient by the latents.
Operations are counted in the traced program, without what the gradient does not need.
"""

import time
from dataclasses import replace
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.interpreters import partial_eval

from benchmarks.operations import equations
from reground_jax.attention_guidance import METHODS, BoxDiff
from reground_jax.bench.aot import compiled
from reground_jax.bench.cases import Denoising, Work, describe
from reground_jax.bench.harness import GIB, table
from reground_jax.model import network
from reground_jax.networks.recompute import blockwise_attention
from reground_jax.pipeline import Pipeline
from reground_jax.sampling.attention_guidance.guide import watched
from reground_jax.settings import Wiring

WIRINGS: tuple[Wiring, ...] = ("sequential", "parallel")


def measure(pipe: Pipeline, work: Work, *, repeats: int) -> dict[str, Any]:
    """By wiring: a step without guidance, and the same step with one update of BoxDiff."""
    rows, gmacs = [], {}
    for wiring in WIRINGS:
        settings = replace(work.settings, wiring=wiring, gamma=1.0, solver="ddim", eta=0.0)
        guided = replace(settings, attention_guidance=BoxDiff(until=1.0))
        steps = [Denoising.of(pipe, replace(work, settings=own)) for own in (settings, guided)]
        memory = [compiled(step.program()).temporaries / GIB for step in steps]
        seconds: list[list[float]] = [[], []]
        for turn in range(repeats + 1):  # the first one warms up
            for step, found in zip(steps, seconds, strict=True):
                state = jax.block_until_ready(step.start())
                begin = time.perf_counter()
                jax.block_until_ready(step.run(state, 0, 1))
                found += [time.perf_counter() - begin] if turn else []
        rows.append(
            {
                "wiring": wiring,
                "seconds": seconds,
                "ratio": median(b / a for a, b in zip(*seconds, strict=True)),
                "memory_gib": memory,
            }
        )
        gmacs |= {
            wiring: _gmacs(steps[0], fusers=True),
            "no fusers": _gmacs(steps[0], fusers=False),  # the same in either wiring
        }
    return {"shape": describe(pipe, work), "rows": rows, "gmacs": gmacs}


def show(record: dict[str, Any]) -> str:
    rows = [["wiring", "step s", "with an update s", "ratio", "GiB", "with an update GiB"]]
    for row in record["rows"]:
        times = [f"{median(found):.3f}" for found in row["seconds"]]
        memory = [f"{found:.2f}" for found in row["memory_gib"]]
        rows.append([row["wiring"], *times, f"{row['ratio']:.2f}", *memory])
    counts = [["GMAC per image", "step", *METHODS]]
    for name, found in record["gmacs"].items():
        counts.append([name, *(f"{gmacs:.0f}" for gmacs in found.values())])
    return f"{record['shape']}\n{table(rows)}\n\n{table(counts)}"


def _gmacs(step: Denoising, *, fusers: bool) -> dict[str, float]:
    """Of a whole step, and of an update by each method."""
    traced = {"step": _step(step, fusers), **{m: _update(step, m, fusers) for m in METHODS}}
    return {name: _macs(jaxpr) / len(step.start().x) / 1e9 for name, jaxpr in traced.items()}


def _arguments(step: Denoising) -> tuple[Any, ...]:
    return step.pipe.params["unet"], step.start().x, step.prepared


def _step(step: Denoising, fusers: bool) -> Any:
    """The traced U-Net of a whole step."""

    def run(params, x, prepared):
        unet = nnx.merge(_graph(step), params)
        return unet(x, prepared.at(0), **_options(step, fusers))

    return jax.make_jaxpr(run)(*_arguments(step)).jaxpr


def _update(step: Denoising, method: str, fusers: bool) -> Any:
    """The traced gradient by the latents of a loss that reads the maps of a method."""
    watch = watched(METHODS[method], step.pipe.config.unet)

    def loss(x, params, prepared):
        unet = nnx.merge(_graph(step), params)
        context = prepared.at(0).conditional(x.shape[0])
        maps = unet.watched(x, context, watch, **_options(step, fusers))[1]
        return sum(jnp.square(found).sum() for found in maps.values())

    params, x, prepared = _arguments(step)
    traced = jax.make_jaxpr(jax.grad(loss))(x, params, prepared).jaxpr
    return partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))[0]


def _graph(step: Denoising) -> nnx.GraphDef:
    return network(step.pipe.config, "unet")[0]


def _options(step: Denoising, fusers: bool) -> dict[str, Any]:
    gate = jnp.float32(1) if fusers else None
    return {"gate": gate, "wiring": step.settings.wiring, "attend": blockwise_attention}


def _macs(jaxpr: Any) -> int:
    """Of matrix products and convolutions."""
    return sum(count * _macs_of(equation) for equation, count in equations(jaxpr))


def _macs_of(equation: Any) -> int:
    if equation.primitive.name not in ("dot_general", "conv_general_dilated"):
        return 0
    (left, right), (out,) = (
        [var.aval.shape for var in side] for side in (equation.invars, equation.outvars)
    )
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return int(np.prod(out) * np.prod([left[axis] for axis in contracted]))
    numbers = equation.params["dimension_numbers"]
    # Zeros that the gradient of a strided convolution puts between its inputs do not count.
    dilation = int(np.prod(equation.params["lhs_dilation"]))
    window = np.prod([right[axis] for axis in numbers.rhs_spec[1:]])
    return int(np.prod(out) * window) // dilation

"""Operations of one denoising step, before and after hoisting step-invariant work out of it.

Counted in the traced program, before compilation: XLA's own hoisting and fusion differ by platform.
"before" is the U-Net as the papers' code calls it: both guidance branches from the latents on, with
contexts and time embedding computed in every call.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from reground_jax.bench.presets import preset_config
from reground_jax.model import network
from reground_jax.networks.attention import attention_for
from reground_jax.networks.grounding.text import Grounding
from reground_jax.networks.unet import UNet
from reground_jax.settings import Wiring

ATTEND = attention_for("cpu", "plain")
BATCH, SLOTS = 1, 30  # images, and grounding tokens per image
HEAVY = {"dot_general": "matrix products", "conv_general_dilated": "convolutions"}


def count(preset: str) -> dict[str, dict[str, int]]:
    """Operations of a step by kind: before, and now under either wiring."""
    now = {f"now, {wiring}": _now(preset, wiring) for wiring in ("sequential", "parallel")}
    return {"before": _before(preset), **now}


def show(record: dict[str, dict[str, int]]) -> str:
    from reground_jax.bench.harness import table

    kinds = list(record["before"])
    rows = [["one step", *kinds]]
    rows += [[name, *(str(found[kind]) for kind in kinds)] for name, found in record.items()]
    return table(rows)


def _shapes(preset: str) -> tuple[Any, ...]:
    """The U-Net's graph, and the shapes of parameters, x, texts, grounding, time step and gate."""
    config = preset_config(preset)

    def shape(*dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, jnp.float32)

    graph, params = network(config, "unet")
    side, width, both = config.unet.sample_size, config.unet.text_width, 2 * BATCH
    x = shape(BATCH, side, side, config.unet.in_channels)
    text = shape(both, config.text_encoder.network.max_length, width)
    grounding = Grounding(shape(both, SLOTS, 4), shape(both, SLOTS, width), shape(both, SLOTS))
    return graph, params, x, text, grounding, shape(1), shape()


def _before(preset: str) -> dict[str, int]:
    graph, *shapes = _shapes(preset)

    def step(params, x, text, grounding, timestep, gate):
        unet: UNet = nnx.merge(graph, params)
        prepared = unet.prepare(
            text, unet.tokens(grounding, dtype=text.dtype), timestep, wiring="sequential"
        )
        both = jnp.concatenate([x, x])
        return unet(both, prepared, gate=gate, wiring="sequential", attend=ATTEND)

    return _operations(jax.make_jaxpr(step)(*shapes))


def _now(preset: str, wiring: Wiring) -> dict[str, int]:
    graph, params, x, text, grounding, timestep, gate = _shapes(preset)

    def prepare(params, text, grounding, timestep):
        unet: UNet = nnx.merge(graph, params)
        tokens = unet.tokens(grounding, dtype=text.dtype)
        return unet.prepare(text, tokens, timestep, wiring=wiring)

    def step(params, x, prepared, gate):
        unet: UNet = nnx.merge(graph, params)
        return unet(x, prepared.at(0), gate=gate, wiring=wiring, attend=ATTEND)

    prepared = jax.eval_shape(prepare, params, text, grounding, timestep)
    return _operations(jax.make_jaxpr(step)(params, x, prepared, gate))


def _operations(jaxpr: Any) -> dict[str, int]:
    kinds = Counter(equation.primitive.name for equation, _ in equations(jaxpr.jaxpr))
    return {name: kinds[kind] for kind, name in HEAVY.items()} | {"all": kinds.total()}


def equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """All equations, and how often each runs; calls are replaced by the equations inside them."""
    for equation in jaxpr.eqns:
        inner = list(core.jaxprs_in_params(equation.params))
        if not inner:
            yield equation, times
        for part in inner:
            yield from equations(part, times * equation.params.get("length", 1))

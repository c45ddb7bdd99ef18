"""Benchmark cases for one pipeline: a step, a whole run, and the parts around the U-Net."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reground_jax.bench.attention_shapes import Shape, attention_calls
from reground_jax.bench.harness import Case
from reground_jax.bench.presets import layouts
from reground_jax.counter import run_macs, step_macs, vae_decoder_macs
from reground_jax.devices import compiler_options
from reground_jax.networks.attention import Backend, attention_for
from reground_jax.pipeline import Pipeline
from reground_jax.sampling.attention_guidance.guide import guidance_inputs
from reground_jax.sampling.gate import gate_table, grounded_steps
from reground_jax.sampling.loop import Inputs
from reground_jax.sampling.solvers.plan import State
from reground_jax.settings import Settings, Wiring

PLAIN_LIMIT = 2**28  # logits (1 GiB in float32); plain attention is not tried beyond that


@dataclass(frozen=True)
class Work:
    """What to measure: `settings` of the images, and the batch size over all devices."""

    settings: Settings = Settings(gamma=0.3)
    batch: int = 1


@dataclass(frozen=True)
class Denoising:
    """One batch, ready for its first step."""

    pipe: Pipeline
    settings: Settings
    start: Callable[[], State]
    prepared: Any
    inputs: Inputs

    @classmethod
    def of(cls, pipe: Pipeline, work: Work) -> "Denoising":
        settings, seeds = work.settings, np.arange(work.batch, dtype=np.uint32)
        plan, method = pipe.programs.plan(settings), settings.attention_guidance
        conditioning = pipe.encode(layouts(work.batch), settings)
        prepared = pipe.programs.prepare(
            pipe.params,
            conditioning,
            plan.timesteps,
            wiring=settings.wiring,
            guided=settings.guidance_scale != 1,
        )
        gates = gate_table(settings.gamma, settings.num_steps)
        size = pipe.programs.latent_shape(settings)[:2]
        guided, steps = guidance_inputs(method, conditioning.words, pipe.config.unet, size, plan)
        inputs = Inputs(
            plan, gates, np.float32(settings.guidance_scale), seeds,  # type: ignore[arg-type]
            guided=guided, guidance_steps=steps,
        )  # fmt: skip
        start = functools.partial(pipe.programs.start, plan, settings, seeds)
        return cls(pipe, settings, start, prepared, inputs)

    def program(self, grounded: bool = True) -> tuple[Any, tuple[Any, ...]]:
        """The jitted function behind `run`, and its arguments for the first step."""
        return self.pipe.programs.advance_program(self.settings, grounded), (
            self.pipe.params["unet"], self.start(), self.prepared.for_steps(grounded), self.inputs,
            np.int32(0), np.int32(1),
        )  # fmt: skip

    def compile(self) -> None:
        """Compiles the steps, with and without fusers."""
        needs = [(self.prepared, True), (self.prepared, False)]
        self.pipe.programs.compile_ahead(
            self.pipe.params, self.start(), needs, self.inputs, settings=self.settings
        )

    def run(self, state: State, start: int, stop: int) -> State:
        """`state` after steps start..stop-1."""
        grounded = grounded_steps(np.asarray(self.inputs.gates))
        return self.pipe.programs.advance(
            self.pipe.params, state, self.prepared, self.inputs, grounded, start, stop,
            settings=self.settings,
        )  # fmt: skip


def macs(pipe: Pipeline, work: Work, num_steps: int, grounded: int) -> int:
    """MACs of the U-Net over a run of the batch, including preparation before the first step."""
    height, width, _ = pipe.programs.latent_shape(work.settings)
    return work.batch * run_macs(
        pipe.config.unet, height, width, num_steps=num_steps, grounded_steps=grounded,
        guided=work.settings.guidance_scale != 1, max_boxes=work.settings.max_boxes,
    )  # fmt: skip


def describe(pipe: Pipeline, work: Work) -> str:
    height, width, _ = pipe.programs.latent_shape(work.settings)
    factor = pipe.config.vae.downsampling
    guided = "" if work.settings.guidance_scale == 1 else " guided"
    return f"{work.batch} x {height * factor}x{width * factor}{guided}"


def unet(pipe: Pipeline, work: Work) -> list[Case]:
    """One denoising step, in each wiring and without fusers."""
    height, width, _ = pipe.programs.latent_shape(work.settings)
    kinds: tuple[tuple[str, Wiring, float], ...] = (
        ("step, sequential", "sequential", 1.0),
        ("step, parallel", "parallel", 1.0),
        ("step, no fusers", "parallel", 0.0),
    )
    cases = []
    for name, wiring, gamma in kinds:
        # DDIM evaluates the U-Net once per step, even in the first one.
        settings = replace(work.settings, wiring=wiring, gamma=gamma, solver="ddim", eta=0.0)
        denoising = Denoising.of(pipe, replace(work, settings=settings))
        call = functools.partial(_step, denoising)
        needed = work.batch * step_macs(
            pipe.config.unet, size=(height, width), grounded=gamma > 0,
            guided=settings.guidance_scale != 1, max_boxes=settings.max_boxes,
        )  # fmt: skip
        shape = describe(pipe, work)
        cases.append(Case(name, shape, call, lambda d=denoising: (d.start(),), 0, needed))
    return cases


def _step(denoising: Denoising, state: State) -> State:
    return denoising.run(state, 0, 1)


def generate(pipe: Pipeline, work: Work) -> list[Case]:
    """Whole runs, from text to images, at the settings' gamma and with fusers always on."""
    height, width, _ = pipe.programs.latent_shape(work.settings)
    decoder = work.batch * vae_decoder_macs(pipe.config.vae, height, width)
    requests = layouts(work.batch)
    cases = []
    for gamma in dict.fromkeys((work.settings.gamma, 1.0)):
        settings = replace(work.settings, gamma=gamma)
        steps = settings.num_steps
        grounded = grounded_steps(gate_table(gamma, steps))
        call = functools.partial(
            pipe, requests, settings, output="numpy", batch_size=work.batch // len(pipe.devices)
        )
        cases.append(
            Case(
                f"run, {settings.wiring}, {settings.solver}, {steps} steps, gamma {gamma}",
                describe(pipe, work),
                call,
                images=work.batch,
                macs=macs(pipe, work, steps, grounded) + decoder,
            )
        )
    return cases


def attention(pipe: Pipeline, work: Work) -> list[Case]:
    """Each attention implementation of the platform, on the U-Net's own shapes and one device."""
    platform, settings = pipe.devices[0].platform, work.settings
    height, width, _ = pipe.programs.latent_shape(settings)
    branches = work.batch * (1 if settings.guidance_scale == 1 else 2)
    fused: dict[str, tuple[Backend, ...]] = {
        "cpu": ("lean",), "tpu": ("lean", "pallas"), "gpu": ("lean", "blocked", "cudnn"),
    }  # fmt: skip
    compiled = functools.partial(jax.jit, compiler_options=compiler_options(pipe.devices))
    cases = []
    for kind, shape in attention_calls(pipe.config, height, width, branches, settings.max_boxes):
        for form in ("plain", *fused[platform]):
            if form == "plain" and math.prod(shape) // shape.width > PLAIN_LIMIT:
                continue
            cases.append(
                Case(
                    f"{kind} attention, {form}",
                    str(shape),
                    compiled(attention_for(platform, form)),
                    functools.partial(_queries_keys_values, shape, pipe.dtype),
                    macs=shape.macs,
                )
            )
    return cases


def _queries_keys_values(shape: Shape, dtype: str) -> tuple[jax.Array, ...]:
    noise = jax.random.split(jax.random.key(0), 3)
    return tuple(
        jax.random.normal(key, (shape.branches, length, shape.heads, shape.width), jnp.dtype(dtype))
        for key, length in zip(noise, (shape.queries, shape.keys, shape.keys), strict=True)
    )


def vae(pipe: Pipeline, work: Work) -> list[Case]:
    """Latents to images."""
    shape = pipe.programs.latent_shape(work.settings)
    latents = jax.random.normal(jax.random.key(0), (work.batch, *shape))
    needed = work.batch * vae_decoder_macs(pipe.config.vae, *shape[:2])
    call = functools.partial(pipe.decode, latents)
    return [Case("decode", describe(pipe, work), call, images=work.batch, macs=needed)]


def text(pipe: Pipeline, work: Work) -> list[Case]:
    """Texts and boxes of the batch to Conditioning: four distinct texts per layout."""
    requests = layouts(work.batch)
    call = functools.partial(pipe.encode, requests, work.settings)
    return [Case("encode", f"{work.batch} layouts", lambda: call().text)]


CASES: dict[str, Callable[[Pipeline, Work], Sequence[Case]]] = {
    "unet": unet,
    "generate": generate,
    "attention": attention,
    "vae": vae,
    "text": text,
}

"""The images of a study: how they are generated, and the sheets that store them."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reground_jax.evaluation.cases import Case, seed_of
from reground_jax.images import save_png, to_uint8
from reground_jax.layout import Layout
from reground_jax.pipeline import Pipeline
from reground_jax.sampling.gate import gate_table, grounded_steps
from reground_jax.sampling.sweep import Schedule, num_steps
from reground_jax.settings import Settings
from reground_jax.storage.checkpoint import flatten, unflatten
from reground_jax.storage.facts import GATES


@runtime_checkable
class Generator(Protocol):
    """Generates images: `Pipeline`, or anything else with the same sweep over gamma."""

    def sweep(
        self,
        layouts: Sequence[Layout],
        settings: Settings,
        *,
        gammas: Sequence[float],
        output: Literal["numpy"],
        seeds: Sequence[int],
        batch_size: int | None,
        progress: Callable[[int, int, int], None],
    ) -> dict[Any, Any]:
        """gamma -> images [B, S, S, 3], float32 in 0..1; one per layout."""
        ...


def generate(
    generator: Generator,
    cases: Sequence[Case],
    settings: Settings,
    *,
    method: str,
    gammas: Sequence[float],
    batch_size: int | None,
    report: Callable[[float], None],
) -> list[UInt8[np.ndarray, "B S S 3"]]:
    """The images at each gamma, in order; steps shared by several gammas run only once.

    settings: shared by all images, except for the method and gamma. report: called with the number
    of steps done, in images' worth of steps.
    """
    tables = [gate_table(gamma, settings.num_steps) for gamma in gammas]
    steps = num_steps([Schedule(gates, None, grounded_steps(gates)) for gates in tables])
    count = len(gammas) * len(cases)

    def progress(batch: int, batches: int, step: int) -> None:
        report(count * (batch + step / steps) / batches)

    with warnings.catch_warnings():
        # Real captions contain words that a small model does not know; the study measures that.
        warnings.filterwarnings("ignore", message="not in this model's vocabulary")
        images = generator.sweep(
            [case.layout for case in cases],
            settings.with_method(method),
            gammas=gammas,
            seeds=[seed_of(case) for case in cases],
            batch_size=batch_size,
            output="numpy",
            progress=progress,
        )
    return [to_uint8(images[gamma], value_range="0..1") for gamma in gammas]


def with_scaled_gates(pipe: Pipeline, scale: float) -> Pipeline:
    """A copy of the pipeline with tanh(gate) of every fuser times `scale`, clipped to ±0.999."""

    def scaled(name: str, leaf: jax.Array) -> jax.Array:
        if not name.endswith(GATES):
            return leaf
        gate = jnp.clip(scale * jnp.tanh(leaf.astype(jnp.float32)), -0.999, 0.999)
        return jax.device_put(jnp.arctanh(gate).astype(leaf.dtype), leaf.sharding)

    leaves = ((name, scaled(name, leaf)) for name, leaf in flatten(pipe.params))
    return dataclasses.replace(pipe, params=unflatten(leaves))


def save_sheet(path: Path, images: UInt8[np.ndarray, "B S S 3"]) -> None:
    """Stacks the images vertically in one PNG, which is written atomically."""
    save_png(path, images.reshape(-1, *images.shape[2:]))


def read_sheet(path: Path, count: int) -> UInt8[np.ndarray, "B S S 3"]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    return pixels.reshape(count, -1, *pixels.shape[1:])

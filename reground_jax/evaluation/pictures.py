"""The pictures of a study: what makes them, and the sheets that they are kept in."""

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
from reground_jax.sampling.gate import gate_table
from reground_jax.sampling.sweep import num_steps
from reground_jax.settings import Settings, Wiring
from reground_jax.storage.checkpoint import flatten, unflatten
from reground_jax.storage.facts import GATES


@runtime_checkable
class Generator(Protocol):
    """What makes images: `Pipeline`, or anything else that sweeps over gamma as it does."""

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
    wiring: Wiring,
    gammas: Sequence[float],
    batch_size: int | None,
    report: Callable[[float], None],
) -> list[UInt8[np.ndarray, "B S S 3"]]:
    """The images at each gamma, in order; the steps that gammas have in common are run once.

    settings: of every image; its wiring and gamma are not read. report: is told how many images'
    worth of steps are done.
    """
    tables = np.stack([gate_table(gamma, settings.num_steps) for gamma in gammas])
    steps, count = num_steps(tables), len(gammas) * len(cases)

    def progress(batch: int, batches: int, step: int) -> None:
        report(count * (batch + step / steps) / batches)

    with warnings.catch_warnings():
        # Real captions have words that a small model does not know; that is what is measured.
        warnings.filterwarnings("ignore", message="not in this model's vocabulary")
        images = generator.sweep(
            [case.layout for case in cases],
            dataclasses.replace(settings, wiring=wiring),
            gammas=gammas,
            seeds=[seed_of(case) for case in cases],
            batch_size=batch_size,
            output="numpy",
            progress=progress,
        )
    return [to_uint8(images[gamma], value_range="0..1") for gamma in gammas]


def with_scaled_gates(pipe: Pipeline, scale: float) -> Pipeline:
    """The pipeline with tanh of every fuser's gates times `scale`, at most 0.999 in size."""

    def scaled(name: str, leaf: jax.Array) -> jax.Array:
        if not name.endswith(GATES):
            return leaf
        gate = jnp.clip(scale * jnp.tanh(leaf.astype(jnp.float32)), -0.999, 0.999)
        return jax.device_put(jnp.arctanh(gate).astype(leaf.dtype), leaf.sharding)

    leaves = ((name, scaled(name, leaf)) for name, leaf in flatten(pipe.params))
    return dataclasses.replace(pipe, params=unflatten(leaves))


def save_sheet(path: Path, images: UInt8[np.ndarray, "B S S 3"]) -> None:
    """Images one below the other, as one PNG that appears whole or not at all."""
    save_png(path, images.reshape(-1, *images.shape[2:]))


def read_sheet(path: Path, count: int) -> UInt8[np.ndarray, "B S S 3"]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    return pixels.reshape(count, -1, *pixels.shape[1:])

"""The sampler of a `Pipeline`: batches are dispatched to its devices and not waited for."""

import os
import threading
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float32, UInt32

from reground_jax.batch.run import Run
from reground_jax.conditioning import Conditioning
from reground_jax.devices import Device
from reground_jax.layout import Layout
from reground_jax.pipeline import Pipeline
from reground_jax.request import check_model
from reground_jax.session import Session
from reground_jax.settings import Settings

THREADS = 8  # of the CPU's pool, at least


def local_devices() -> list[Device]:
    """The devices of this process; on CPU, with a pool of threads whose size they do not change.

    XLA's CPU client cuts some matrix products by the size of its pool, which is the larger of the
    numbers of cores and of devices: images' last bits would depend on it. NPROC is its own name for
    the number of cores; it reads it when JAX is first used.
    """
    os.environ.setdefault("NPROC", str(max(THREADS, os.cpu_count() or 1)))
    return jax.local_devices()


class PipelineSampler:
    """`unit.Sampler` on the devices of a pipeline, `batch_size` images on each at a time."""

    def __init__(self, pipe: Pipeline, run: Run):
        """Raises ValueError if the model cannot make one of the run's variants."""
        pipe.programs.latent_shape(run.settings)
        for settings, _ in run.variants():
            check_model(pipe.config, settings)
        self.pipe, self.max_boxes = pipe, run.settings.max_boxes
        self.rows = run.batch_size * len(pipe.devices)
        self._lock = threading.Lock()

    def encode(self, layouts: Sequence[Layout]) -> Conditioning:
        with self._lock:  # the first caller compiles the text encoder, and compiles it once
            return self.pipe.encode(layouts, max_boxes=self.max_boxes)

    def enqueue(
        self,
        encoded: Conditioning,
        rows: slice,
        settings: Settings,
        seeds: UInt32[np.ndarray, "B"],
    ) -> Float32[Array, "B H W 3"]:
        conditioning = jax.tree.map(lambda array: array[rows], encoded)
        session = Session(self.pipe.programs, self.pipe.params, conditioning, settings, seeds)
        return self.pipe.decode(session.finish())

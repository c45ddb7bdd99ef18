"""A sampler on a `Pipeline`: batches are dispatched to its devices without waiting for them."""

import contextlib
import dataclasses
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

THREADS = 8  # minimum size of the CPU's thread pool


def local_devices() -> list[Device]:
    """The devices of this process; on CPU, their number does not affect the thread pool's size.

    XLA's CPU client splits some matrix products by the size of its pool, which is the larger of the
    numbers of cores and of devices, so images' last bits would depend on it. NPROC is XLA's
    variable for the number of cores, which it reads when JAX is first used.
    """
    os.environ.setdefault("NPROC", str(max(THREADS, os.cpu_count() or 1)))
    return jax.local_devices()


class PipelineSampler:
    """A `unit.Sampler` on the devices of a pipeline, with `batch_size` images on each at a time."""

    def __init__(self, pipe: Pipeline, run: Run):
        """Raises ValueError if the model cannot make one of the run's variants."""
        pipe.programs.latent_shape(run.settings)
        for settings, _ in run.variants():
            check_model(pipe.config, settings)
        # Lines are checked when they are indexed. What is left, words past the model's last token,
        # is not guided.
        method = next(iter(run.guidances()), None)
        guidance = method and dataclasses.replace(method, missing="skip")
        self.pipe, self.settings = (
            pipe,
            dataclasses.replace(run.settings, attention_guidance=guidance),
        )
        self.rows = run.batch_size * len(pipe.devices)
        # Two programs at a time on the CPU: with a thread pool of 2, jaxlib 0.10.2 computes some
        # latents wrong (see `programs._ONE_ON_CPU`). One at a time is no slower there.
        self._one_at_a_time = pipe.programs.hardware.on_cpu
        self._lock = threading.Lock()

    def encode(self, layouts: Sequence[Layout]) -> Conditioning:
        with self._lock:  # so that the text encoder is compiled only once
            programs, params, texts = self.pipe.programs, self.pipe.params, self.pipe.texts
            return programs.encode(params, texts, layouts, settings=self.settings)

    def enqueue(
        self,
        encoded: Conditioning,
        rows: slice,
        variants: Sequence[Settings],
        seeds: UInt32[np.ndarray, "B"],
    ) -> list[Float32[Array, "B H W 3"]]:
        with self._lock if self._one_at_a_time else contextlib.nullcontext():
            conditioning = jax.tree.map(lambda array: array[rows], encoded)
            programs, params = self.pipe.programs, self.pipe.params
            session = Session(programs, params, conditioning, variants[0], seeds)
            images = [session.decode(x) for x in session.sweep(variants)]
            return jax.block_until_ready(images) if self._one_at_a_time else images

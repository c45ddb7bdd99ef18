"""`reground-jax batch` with a stub sampler, for tests of everything around the model.

As a program, `python -m tests.batch_stub SECONDS ARGUMENTS...`, it is the command line with a step
of SECONDS per batch, and imports no JAX.
"""

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from reground_jax.cli import batch, main
from reground_jax.cli.sampling import Found
from tests.batch_hold import hold_if_asked

SIDE = 8
CHECKSUM = "0" * 64


class Drawn:
    """Images that are still being computed, like a `jax.Array`."""

    def __init__(self, future: Future):
        self.future = future

    def block_until_ready(self):
        self.future.result()

    def __array__(self, dtype=None, copy=None):
        return self.future.result()


class Stub:
    """A device that takes `seconds` for a batch and draws a pattern of seed, wiring and prompt."""

    def __init__(self, rows: int, seconds: float = 0.0):
        self.rows, self.seconds = rows, seconds
        self.device = ThreadPoolExecutor(1)
        self.threads: set[str] = set()
        self.enqueued: list[tuple] = []

    def encode(self, layouts):
        self.threads.add(threading.current_thread().name)
        return [layout.prompt for layout in layouts]

    def enqueue(self, encoded, rows, variants, seeds) -> Sequence[Drawn]:
        gammas = tuple(settings.gamma for settings in variants)
        self.enqueued.append((tuple(encoded[rows]), variants[0].wiring, gammas))
        return [
            Drawn(self.device.submit(self._draw, encoded[rows], settings, seeds.copy()))
            for settings in variants
        ]

    def _draw(self, prompts, settings, seeds):
        time.sleep(self.seconds)
        images = np.zeros((len(seeds), SIDE, SIDE, 3), np.float32)
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):
            text = f"{prompt} {seed} {settings.wiring}".encode()
            image[:] = np.resize(np.frombuffer(text, np.uint8), image.shape) / 255
        return images


def installed(seconds: float):
    """Replaces the model with the stub."""
    batch.find_model = lambda *_: Found(Path("stub"), CHECKSUM, {})
    batch.load_sampler = lambda directory, run, setup: Stub(run.batch_size, seconds)


if __name__ == "__main__":
    hold_if_asked()
    installed(float(sys.argv[1]))
    code = main(sys.argv[2:])
    assert "jax" not in sys.modules, "the stub is to be quick"
    sys.exit(code)

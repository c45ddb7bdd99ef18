"""Training batches of the emoji world from any step on, made in other processes if wanted.

Batch i depends on (world, seed, i) only, so a run resumed at step i reads what the killed one
would have read, whatever the number of workers.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import count

from reground_jax.emoji.artwork import Artwork
from reground_jax.emoji.world import Example, World, WorldConfig


def batches(
    config: WorldConfig,
    artwork: Artwork,
    batch_size: int,
    *,
    start: int = 0,
    seed: int = 0,
    workers: int = 0,
    ahead: int = 4,
) -> Iterator[list[Example]]:
    """Endless batches start, start + 1, ... as `World.batch` makes them.

    workers  processes that make them; 0 makes each in the caller when it is asked for
    ahead    batches that wait ready per worker
    """
    if workers == 0:
        world = World(config, artwork)
        yield from (world.batch(index, batch_size, seed) for index in count(start))
    # spawn: a forked child would inherit the accelerator runtime's threads and locks.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _start, (config, artwork)) as pool:
        waiting: deque[Future[list[Example]]] = deque()
        try:
            for index in count(start):
                waiting.append(pool.submit(_batch, index, batch_size, seed))
                if len(waiting) > ahead * workers:
                    yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worlds: list[World] = []  # the one world of a worker process


def _start(config: WorldConfig, artwork: Artwork) -> None:
    os.nice(5)  # the trainer comes first
    _worlds[:] = [World(config, artwork)]


def _batch(index: int, batch_size: int, seed: int) -> list[Example]:
    return _worlds[0].batch(index, batch_size, seed)

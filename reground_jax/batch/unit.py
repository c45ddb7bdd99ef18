"""`Generator.generate_unit`: turns some lines of the input into a shard of the output.

A unit's lines are split into batches of `batch_size` per device, in order, with an empty layout for
a line that has none, so that line numbers alone determine what is computed together, whatever the
number of devices. A batch is made at all gammas together, so that the steps they share run once.
Several threads call `generate_unit` concurrently (engine.py): one of them uses the device, and
keeps one batch enqueued behind the running one, while the others read, encode texts, encode images
and write.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt32

from reground_jax.batch.index import Index, Source
from reground_jax.batch.manifest import Entry
from reground_jax.batch.preview import write_sheets
from reground_jax.batch.run import Run, seed_of
from reground_jax.batch.shards import Made, make, writing_shard
from reground_jax.batch.store import Store
from reground_jax.images import Recipe, to_uint8
from reground_jax.layout import Layout
from reground_jax.readers import reason_of
from reground_jax.readers.lines import Line
from reground_jax.settings import Settings

ENQUEUED = 2  # batches on the device: the running one and one behind it
UNWRITTEN = 4  # batches of one gamma that are computed or in progress, but not yet in the shard
ENCODERS = 8  # maximum number of threads that encode images
STOP_CHECK = 0.2  # seconds
FILLER = Layout(prompt="")


# Float images [B, H, W, 3] in 0..1, possibly still being computed: a `jax.Array`, or another value
# that has `block_until_ready` and that `np.asarray` turns into an array.
Images = Any


@runtime_checkable
class Sampler(Protocol):
    """Generates images: `sampler.PipelineSampler`, or a stand-in in tests."""

    rows: int  # layouts per batch, over all devices

    def encode(self, layouts: Sequence[Layout]) -> Any:
        """Encodes texts and boxes into what `enqueue` needs. Called from several threads."""
        ...

    def enqueue(
        self,
        encoded: Any,
        rows: slice,
        variants: Sequence[Settings],
        seeds: UInt32[np.ndarray, "B"],
    ) -> Sequence[Images]:
        """Starts a batch of `rows` of the layouts in each of `variants`, without waiting for it.

        The variants differ in gamma only, and have the same seeds.
        """
        ...


class Stopped(Exception):
    """The process was asked to stop, and a unit was dropped."""


class UnitError(ValueError):
    """A unit could not be made, most likely because of its lines."""


class Batch(NamedTuple):
    """Lines that are computed together, in those of the run's variants that differ in gamma."""

    rows: slice  # of the unit
    first: int  # line of the input
    lines: list[Line | None]
    variants: dict[int, Settings]
    seeds: UInt32[np.ndarray, "B"]

    @property
    def images(self) -> int:
        return len(self.variants) * sum(line is not None for line in self.lines)


@dataclass
class Meter:
    """Measures how long the device is idle between batches, in seconds.

    It is idle from when a batch is ready, with none behind it, until the next one is enqueued.
    """

    batches: int = 0
    images: int = 0
    idle: float = 0.0
    longest: float = 0.0
    started: float | None = None
    ended: float = 0.0
    _under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enqueued(self) -> None:
        with self._lock:
            now = time.monotonic()
            if self.started is None:
                self.started = now
            elif self._under_way == 0:
                gap = now - self.ended
                self.idle += gap
                self.longest = max(self.longest, gap)
            self._under_way += 1

    def ready(self, images: int) -> None:
        with self._lock:
            self._under_way -= 1
            self.batches += 1
            self.images += images
            self.ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """From the first batch enqueued to the last one ready."""
        return self.ended - self.started if self.images and self.started is not None else 0.0

    @property
    def rate(self) -> float:
        """Images per second of that time."""
        return self.images / self.seconds if self.images else 0.0


class Generator:
    """Makes units of a run. Thread-safe; `stop` makes it drop what is not yet on the device."""

    def __init__(
        self,
        run: Run,
        source: Source,
        index: Index,
        store: Store,
        sampler: Sampler,
        preview: int = 0,
    ):
        """preview: contact sheets show the images of this many lines."""
        self.run, self.source, self.index, self.store = run, source, index, store
        self.sampler, self.preview = sampler, preview
        self.meter = Meter()
        self.stop = threading.Event()
        self._turn = threading.Lock()
        self._slots = threading.Semaphore(ENQUEUED)
        self._waiter = ThreadPoolExecutor(1, "wait")
        self._encoders = ThreadPoolExecutor(min(ENCODERS, os.cpu_count() or 1), "encode")

    def generate_unit(self, unit: int) -> Entry:
        """Makes the images of a unit and writes its shard, with identical bytes each time.

        Raises Stopped; OSError if the shard cannot be written; the original error if memory runs
        out; and UnitError, which names the unit's lines, for anything else.
        """
        if self.stop.is_set():
            raise Stopped
        lines: list[Line | None] = []
        try:
            first = unit * self.run.unit_lines
            lines += self.index.read(self.source, first, first + self.run.unit_lines)
            return self._make(unit, first, lines)
        except (Stopped, OSError, MemoryError):
            raise
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):  # XLA's out-of-memory error
                raise
            named = _named(unit, self.run.unit_lines, lines)
            raise UnitError(f"{named}: {reason_of(error)}") from error

    def _make(self, unit: int, first: int, lines: list[Line | None]) -> Entry:
        lines = lines + [None] * (-len(lines) % self.sampler.rows)
        encoded = self.sampler.encode([line.layout if line else FILLER for line in lines])
        tiles: list[Made] = []
        under_way: deque[Future[list[Future[Made]]]] = deque()
        most = max(ENQUEUED, UNWRITTEN // len(self.run.gammas))
        with writing_shard(self.store, self.run, unit) as shard:

            def write_batch() -> None:
                for future in under_way.popleft().result():
                    made = future.result()
                    shard.add(made)
                    if made.record["line"] <= self.preview:
                        tiles.append(made)

            with self._turn:
                for batch in self._batches(first, lines):
                    under_way.append(self._enqueue(encoded, batch))
                    if len(under_way) > most:
                        write_batch()
            while under_way:
                write_batch()
        write_sheets(self.store, unit, tiles)
        return shard.entry

    def close(self) -> None:
        """Ends the threads."""
        self._waiter.shutdown()
        self._encoders.shutdown()

    def _batches(self, first: int, lines: list[Line | None]) -> Iterator[Batch]:
        """All variants of all lines, without batches that have no layout."""
        variants = self.run.variants()
        for sweep in self.run.sweeps():
            run_seed = variants[sweep[0]][1]
            settings = {variant: variants[variant][0] for variant in sweep}
            for start in range(0, len(lines), self.sampler.rows):
                rows = slice(start, start + self.sampler.rows)
                chosen = lines[rows]
                if not any(chosen):
                    continue
                seeds = [seed_of(run_seed, line) if line else 0 for line in chosen]
                yield Batch(rows, first + start, chosen, settings, np.array(seeds, np.uint32))

    def _enqueue(self, encoded: Any, batch: Batch) -> Future[list[Future[Made]]]:
        while not self._slots.acquire(timeout=STOP_CHECK):
            if self.stop.is_set():
                raise Stopped
        if self.stop.is_set():
            self._slots.release()
            raise Stopped
        variants = list(batch.variants.values())
        self.meter.enqueued()
        images = self.sampler.enqueue(encoded, batch.rows, variants, batch.seeds)
        return self._waiter.submit(self._wait, images, batch)

    def _wait(self, images: Sequence[Images], batch: Batch) -> list[Future[Made]]:
        """Frees the batch's slot once the images are ready, and hands them to the encoders."""
        try:
            for made in images:
                made.block_until_ready()
        finally:
            self.meter.ready(batch.images)
            self._slots.release()
        arrays = zip(batch.variants, map(np.asarray, images), strict=True)
        return [
            self._encoders.submit(self._encode, array[row], batch, row, variant)
            for variant, array in arrays
            for row, line in enumerate(batch.lines)
            if line is not None
        ]

    def _encode(
        self, image: Float[np.ndarray, "H W 3"], batch: Batch, row: int, variant: int
    ) -> Made:
        line, run = batch.lines[row], self.run
        assert line is not None
        recipe = Recipe(
            line.layout,
            batch.variants[variant],
            int(batch.seeds[row]),
            run.checkpoint,
            run.checkpoint_sha256,
        )
        try:
            pixels = to_uint8(image[None], value_range="0..1")[0]
        except ValueError as error:
            raise ValueError(f"{line.layout.name}: {error}") from error
        return make(pixels, batch.first + row, variant, recipe, run)


def _named(unit: int, unit_lines: int, lines: list[Line | None]) -> str:
    """Names a unit by its lines in the input, so that users can find them."""
    first, count = unit * unit_lines + 1, len(lines) or unit_lines
    ids = [line.id for line in lines if line is not None]
    between = f": {ids[0]!r} to {ids[-1]!r}" if ids else ""
    return f"unit {unit} (lines {first} to {first + count - 1} of the input{between})"

"""The work of one of the processes that share a run."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from reground_jax.batch.hosts import Share
from reground_jax.batch.index import Index, Source
from reground_jax.batch.manifest import Entry, finished, read_manifests
from reground_jax.batch.run import Run
from reground_jax.batch.store import Store


@dataclass(frozen=True)
class Job:
    """A run, where it reads and writes, and the share of it that this process makes."""

    run: Run
    source: Source
    index: Index
    store: Store
    share: Share

    def remaining(self) -> tuple[list[int], int]:
        """The share's unfinished units, and how many lines of manifests are damaged."""
        entries, damaged = read_manifests(self.store)
        units = self.share.of(self.index.units(self.run.unit_lines))
        return [unit for unit in units if not self._finished(unit, entries.get(unit, []))], damaged

    def _finished(self, unit: int, entries: list[Entry]) -> bool:
        """Whether a unit is finished; entries with other image counts are from a damaged index."""
        images = self.images([unit])
        whole = [entry for entry in entries if entry.images == images]
        return finished(self.store, whole) is not None

    def images(self, units: Iterable[int]) -> int:
        size = self.run.unit_lines
        hashes = self.index.hashes
        lines = sum(np.count_nonzero(hashes[unit * size : (unit + 1) * size]) for unit in units)
        return int(lines) * len(self.run.variants())

    def whose(self) -> str:
        """Which share it is, as the end of a phrase; empty if there is only one."""
        index, count = self.share.index, self.share.count
        return "" if count == 1 else f" of share {index} of {count} (by {self.share.origin})"

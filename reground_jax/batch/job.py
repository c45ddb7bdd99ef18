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
    """A run, where it reads and writes, and the share of it that this process makes.

    lines: only the first lines of the input are asked for; all by default. A later job of the same
    output may ask for more: it makes the last unit again if that has fewer images than it asks for.
    """

    run: Run
    source: Source
    index: Index
    store: Store
    share: Share
    lines: int | None = None

    @property
    def asked(self) -> Index:
        """The index of the lines that are asked for."""
        return self.index if self.lines is None else self.index.first(self.lines)

    def units(self) -> list[int]:
        """The units of the share."""
        return self.share.of(self.asked.units(self.run.unit_lines))

    def remaining(self) -> tuple[list[int], int]:
        """The share's unfinished units, and how many lines of manifests are damaged."""
        entries, damaged = read_manifests(self.store)
        missing = [unit for unit in self.units() if self.entry(unit, entries) is None]
        return missing, damaged

    def entry(self, unit: int, entries: dict[int, list[Entry]]) -> Entry | None:
        """The entry of a unit, if it is finished; entries: those of `read_manifests`.

        Entries with other numbers of images are from a damaged index, or from a job for fewer
        lines.
        """
        least, most = self.images([unit]), self._images(self.index, [unit])
        whole = [entry for entry in entries.get(unit, []) if least <= entry.images <= most]
        return finished(self.store, whole)

    def images(self, units: Iterable[int]) -> int:
        return self._images(self.asked, units)

    def _images(self, index: Index, units: Iterable[int]) -> int:
        size, hashes = self.run.unit_lines, index.hashes
        lines = sum(np.count_nonzero(hashes[unit * size : (unit + 1) * size]) for unit in units)
        return int(lines) * len(self.run.variants())

    def whose(self) -> str:
        """Which share it is, as the end of a phrase; empty if there is only one."""
        index, count = self.share.index, self.share.count
        return "" if count == 1 else f" of share {index} of {count} (by {self.share.origin})"

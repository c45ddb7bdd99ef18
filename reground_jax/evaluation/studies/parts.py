"""The batch runs that a study consists of: one for each model, set of cases, method and seed.

A run has several gammas, which are made together. A study that asks for more of them than an
earlier one did makes the others as a further run, so a series may have several.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reground_jax.batch.hosts import Share
from reground_jax.batch.manifest import Entry, finished, read_manifests
from reground_jax.batch.run import NAME, Run, read_run
from reground_jax.batch.store import Store, open_store
from reground_jax.evaluation.data import CaseSet
from reground_jax.evaluation.studies.conditions import Condition, Series
from reground_jax.evaluation.studies.galleries import Shards


@dataclass(frozen=True)
class Part:
    """One run of a study in `OUT/images/SERIES/seed-SEED/GAMMAS`.

    gammas  those of the run that the study asks for
    parent  the folder of the series and seed, within `out`
    """

    series: Series
    seed: int
    gammas: tuple[float, ...]
    parent: str
    run: Run
    cases: CaseSet
    out: str

    @property
    def folder(self) -> str:
        return f"{self.parent}/{name_of(self.run.gammas)}"

    def store(self, owner: str = "reader") -> Store:
        return open_store(f"{self.out}/{self.folder}", owner=owner)

    def has(self, condition: Condition) -> bool:
        return condition in self.series.conditions() and condition.gamma in self.gammas

    def units(self, share: Share | None = None) -> list[int]:
        """The units that have the asked cases, or only those of a share."""
        every = range(-(-self.cases.count // self.run.unit_lines))
        return list(every) if share is None else share.of(every)

    def lines(self, unit: int, count: int | None = None) -> int:
        """How many of the first `count` cases a unit has; by default, of the asked ones."""
        size = self.run.unit_lines
        return min(size, (self.cases.count if count is None else count) - unit * size)

    def images(self, units: Iterable[int]) -> int:
        return sum(self.lines(unit) for unit in units) * len(self.run.gammas)

    def finished(self) -> dict[int, Entry]:
        """The units that have all images that are asked for, or more."""
        store = self.store()
        if store.size(NAME) is None:
            return {}
        entries, _ = read_manifests(store)
        found = {}
        for unit in self.units():
            least, most = (
                self.lines(unit, count) * len(self.run.gammas)
                for count in (None, len(self.cases.cases))
            )
            whole = [e for e in entries.get(unit, []) if least <= e.images <= most]
            if (entry := finished(store, whole)) is not None:
                found[unit] = entry
        return found

    def gallery(self) -> Shards:
        variants = len(self.run.gammas)
        return Shards(self.folder, self.store(), self.finished(), self.cases.cases, variants)

    def rows(self, unit: int, gamma: float, gallery: Shards) -> range:
        """Where the asked images of one gamma are among those of a unit."""
        entry = gallery.entries.get(unit)
        if entry is None:
            return range(0)
        lines = entry.images // len(self.run.gammas)
        start = self.run.gammas.index(gamma) * lines
        return range(start, start + self.lines(unit))

    def pictures(self, gamma: float, lines: Sequence[int]) -> list[np.ndarray]:
        """Images [S, S, 3] of some cases (from 0) at one gamma."""
        gallery, size = self.gallery(), self.run.unit_lines
        variant = self.run.gammas.index(gamma)
        found: dict[int, np.ndarray] = {}
        for unit in sorted({line // size for line in lines}):
            own = [line for line in lines if line // size == unit]
            found |= dict(zip(own, gallery.images(unit, variant, own), strict=True))
        return [found[line] for line in lines]


def name_of(gammas: Sequence[float]) -> str:
    return ",".join(f"{gamma:g}" for gamma in gammas)


def gammas_of(store: Store, folder: str) -> list[tuple[float, ...]]:
    """The gammas of each run that there is in a folder."""
    found = [open_store(f"{store.url}/{folder}/{name}") for name in store.names(folder)]
    return [read_run(run).gammas for run in found if run.size(NAME) is not None]


def parts_of(
    asked: Sequence[float], existing: Sequence[tuple[float, ...]]
) -> list[tuple[float, ...]]:
    """The gammas of the runs that together have those asked for.

    Existing runs are used for what they have; one more has the rest.
    """
    left, chosen = set(asked), []
    for gammas in existing:
        if left & set(gammas):
            left -= set(gammas)
            chosen.append(gammas)
    return [*chosen, *([tuple(sorted(left))] if left else [])]

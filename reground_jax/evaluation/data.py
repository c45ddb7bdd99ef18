"""What a data set is to a study: named sets of cases, their photographs, and how they are seeded.

A new data set is a function that returns a `Data`, named in `cli/datasets.py`.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reground_jax.evaluation.cases import Case, seed_of
from reground_jax.evaluation.scorer import TradeOff

Reach = Literal["all", "grounded", "largest"]


@dataclass(frozen=True)
class CaseSet:
    """Cases of which a study measures the first `count`.

    All of them are the input of its runs, so that a study of more layouts goes on with the images
    of a smaller one. Their ids must be unique.

    name   in results and names of folders
    title  heading in the report
    reach  the gammas at which the two main wirings are measured on it: all of the study's; all but
           0, where nothing is grounded; or only the largest
    paper  which rows of the papers' tables to show beside it, a key of `paper.PAPER`; or empty
    """

    name: str
    title: str
    cases: Sequence[Case]
    count: int
    reach: Reach = "largest"
    paper: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(self.cases):
            raise ValueError(
                f"{self.title} has {len(self.cases)} layouts, and {self.count} are asked for: "
                f"choose 1 to {len(self.cases)}"
            )

    @property
    def used(self) -> Sequence[Case]:
        return self.cases[: self.count]


@dataclass(frozen=True)
class Data:
    """The sets of cases of a study, the main one first.

    own_seeds    an image's seed is `seed_of` its case; otherwise it is made from the run's seed and
                 the layout's id, as `batch` does, and a study may have several
    identity     what else the cases depend on, as plain JSON; goes into the study's record
    facts        what the report should say of the cases, as plain JSON
    photographs  set of cases -> a file of each case that is used, for the sets that have them
    told         cases whose prompts tell how many objects there are, each with a photograph of just
                 that; scorers may choose thresholds on them
    categories   all that a detector must know
    trade_offs   pairs of metrics to weigh against each other, the best first; a study takes the
                 first of which it measures both
    """

    sets: tuple[CaseSet, ...]
    own_seeds: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    photographs: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    told: Sequence[tuple[Case, Path]] = ()
    trade_offs: tuple[TradeOff, ...] = ()
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [found.name for found in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"sets of cases are called {', '.join(names)}: give each its own name")

    def of(self, name: str) -> CaseSet:
        return next(found for found in self.sets if found.name == name)

    @functools.cached_property
    def inputs(self) -> dict[str, bytes]:
        """All layouts of each set as JSONL, the input of `batch`."""
        return {
            found.name: "".join(f"{json.dumps(self._line(c))}\n" for c in found.cases).encode()
            for found in self.sets
        }

    def _line(self, case: Case) -> dict[str, Any]:
        seed = {"seed": seed_of(case)} if self.own_seeds else {}
        return case.layout.to_json() | seed

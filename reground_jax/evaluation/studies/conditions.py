"""What a study varies: the model, the cases, the method (see `Settings.with_method`) and gamma."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reground_jax.evaluation.data import CaseSet

ENDS = ("sequential", "parallel")  # which other methods are compared with
SINGLE = ("no_grounding", "no_text", "text_first")  # measured at one gamma, for orientation


@dataclass(frozen=True)
class Series:
    """One model's images of one set of cases, by one method, at several gammas."""

    model: str  # a key of the study's models
    cases: str  # the name of a set of cases
    method: str
    gammas: tuple[float, ...]

    def conditions(self) -> "list[Condition]":
        return [Condition(self.model, self.cases, self.method, gamma) for gamma in self.gammas]

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=,-]", "-", f"{self.model}-{self.cases}-{self.method}")


@dataclass(frozen=True)
class Condition:
    """One point of the study."""

    model: str
    cases: str
    method: str
    gamma: float


def wiring_series(
    models: Sequence[str],
    sets: Sequence[CaseSet],
    gammas: Sequence[float],
    more: Sequence[str] = (),
    gammas_of_more: Sequence[float] | None = None,
    wirings: Sequence[str] = (*ENDS, *SINGLE),
) -> list[Series]:
    """The conditions of ReGround's figure, and related ones.

    models: the first is GLIGEN, measured under both main wirings on every set of cases, at the
    gammas that the set's `reach` says, and under the other wirings on the first set; the other
    models are measured under the parallel wiring that they were trained with. more: further methods
    for GLIGEN, measured on the sets with a curve at gammas of their own, or else at all but 0.
    wirings: which of ENDS and SINGLE to measure; the other models only with the parallel wiring.
    """
    (main, *others), first = models, sets[0].name
    gammas, most = tuple(gammas), (max(gammas),)
    grounded = tuple(gamma for gamma in gammas if gamma > 0)
    reach = {"all": gammas, "grounded": grounded or most, "largest": most}
    theirs = grounded if gammas_of_more is None else tuple(gammas_of_more)
    return [
        *(
            Series(main, cases.name, wiring, reach[cases.reach])
            for cases in sets
            for wiring in ENDS
            if wiring in wirings
        ),
        *(Series(main, first, wiring, most) for wiring in SINGLE if wiring in wirings),
        *(Series(other, first, ENDS[1], gammas) for other in others if ENDS[1] in wirings),
        *(
            Series(main, cases.name, method, theirs)
            for cases in sets
            if cases.reach != "largest"
            for method in more
        ),
    ]

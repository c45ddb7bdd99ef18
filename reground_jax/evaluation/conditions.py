"""What a study varies: the model, the cases, the method (see `Settings.with_method`) and gamma."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

ENDS = ("sequential", "parallel")  # which other methods are compared with
SINGLE = ("no_grounding", "no_text", "text_first")  # measured at one gamma, for orientation


@dataclass(frozen=True)
class Series:
    """One model's images of one set of cases, by one method, at several gammas."""

    model: str  # a key of the study's models
    cases: str  # a key of the study's cases
    method: str
    gammas: tuple[float, ...]

    def conditions(self) -> "list[Condition]":
        return [Condition(self.model, self.cases, self.method, gamma) for gamma in self.gammas]


@dataclass(frozen=True)
class Condition:
    """One point of the study."""

    model: str
    cases: str
    method: str
    gamma: float

    @property
    def folder(self) -> str:
        name = f"{self.model}-{self.cases}-{self.method}-{self.gamma:g}"
        return re.sub(r"[^\w.=,-]", "-", name)


def wiring_series(
    models: Sequence[str],
    cases: Sequence[str],
    gammas: Sequence[float],
    more: Sequence[str] = (),
    gammas_of_more: Sequence[float] | None = None,
) -> list[Series]:
    """The conditions of ReGround's figure, and related ones.

    models: the first is GLIGEN, measured under both main wirings on every set of cases, and under
    the other wirings on the first set; the other models are measured under the parallel wiring they
    were trained with. cases: the first set is measured at all gammas, "dropped" at all but 0 (where
    nothing is grounded anyway), the others at the largest gamma. more: further methods for GLIGEN,
    measured on the first set and on "dropped" at gammas of their own, or else at all but 0.
    """
    (main, *others), first = models, cases[0]
    gammas, most = tuple(gammas), (max(gammas),)
    grounded = tuple(gamma for gamma in gammas if gamma > 0)
    reach = {first: gammas, "dropped": grounded}
    compared = [name for name in cases if name in reach]
    theirs = grounded if gammas_of_more is None else tuple(gammas_of_more)
    return [
        *(Series(main, name, wiring, reach.get(name, most)) for name in cases for wiring in ENDS),
        *(Series(main, first, wiring, most) for wiring in SINGLE),
        *(Series(other, first, "parallel", gammas) for other in others),
        *(Series(main, name, method, theirs) for name in compared for method in more),
    ]

"""What a study varies: the model, the cases, the wiring and gamma."""

from collections.abc import Sequence
from dataclasses import dataclass

from reground_jax.settings import Wiring


@dataclass(frozen=True)
class Series:
    """One model's images of one set of cases, under one wiring, at several gammas."""

    model: str  # a key of the study's models
    cases: str  # a key of the study's cases
    wiring: Wiring
    gammas: tuple[float, ...]

    def conditions(self) -> "list[Condition]":
        return [Condition(self.model, self.cases, self.wiring, gamma) for gamma in self.gammas]


@dataclass(frozen=True)
class Condition:
    """One point of the study."""

    model: str
    cases: str
    wiring: Wiring
    gamma: float

    @property
    def folder(self) -> str:
        return f"{self.model}-{self.cases}-{self.wiring}-{self.gamma:g}".replace(" ", "-")


def wiring_series(
    models: Sequence[str], cases: Sequence[str], gammas: Sequence[float]
) -> list[Series]:
    """The conditions of ReGround's figure, and related ones.

    models: the first is GLIGEN, measured under both main wirings on every set of cases, and under
    the other wirings on the first set; the other models are measured under the parallel wiring they
    were trained with. cases: the first set is measured at all gammas, "dropped" at all but 0 (where
    nothing is grounded anyway), the others at the largest gamma.
    """
    (main, *others), first = models, cases[0]
    gammas, most = tuple(gammas), (max(gammas),)
    both: tuple[Wiring, ...] = ("sequential", "parallel")
    single: tuple[Wiring, ...] = ("no_grounding", "no_text", "text_first")
    reach = {first: gammas, "dropped": tuple(gamma for gamma in gammas if gamma > 0)}
    return [
        *(Series(main, name, wiring, reach.get(name, most)) for name in cases for wiring in both),
        *(Series(main, first, wiring, most) for wiring in single),
        *(Series(other, first, "parallel", gammas) for other in others),
    ]

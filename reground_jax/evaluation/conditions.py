"""What a study varies: the model, the cases, the wiring and gamma."""

from collections.abc import Sequence
from dataclasses import dataclass

from reground_jax.settings import Wiring


@dataclass(frozen=True)
class Series:
    """The images of one set of cases, by one model under one wiring, at some gammas."""

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
    """The conditions of ReGround's figure, and those around it.

    models: the first is GLIGEN's, under every wiring and on every set of cases; the others are
    measured under the parallel wiring that they were trained for. cases: the first set at all
    gammas, "dropped" at all but 0, where nothing is grounded anyway, others at the largest gamma.
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

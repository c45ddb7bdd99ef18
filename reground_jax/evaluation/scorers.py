"""What scores pictures: `Scorer`, a value that says all that a study and its report need of it.

A new scorer (CLIP's, a detector's) is one of these values and touches nothing else: a study keeps
the records of every scorer apart, so that a new one, or a new version of one, scores the images
that are there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8

from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.statistics import Record, Statistic


@dataclass(frozen=True)
class Metric:
    """A number of a condition that is estimated with an interval.

    name       what results and columns call it; no two metrics of a study have the same
    meaning    one sentence of the report
    statistic  records, and weights of resamples -> the number in each resample
    main       whether it stands in the report's first table, or in the one of details
    """

    name: str
    meaning: str
    statistic: Statistic
    main: bool = False


@dataclass(frozen=True)
class Distance:
    """A number of a condition as a whole, without an interval; None where there is none."""

    name: str
    meaning: str
    measure: Callable[[Sequence[Record]], float | None]


@dataclass(frozen=True)
class Scorer:
    """From pictures and their cases to records, and from records to numbers.

    name        what its records are kept under
    version     of all that its records depend on: a checksum of weights, a number of the rules. The
                records of another version are not read
    score       images [B, S, S, 3] and their B cases -> one record per image. A record is plain
                JSON with the fields that the metrics read
    metrics     in the order of the report's columns
    references  by set of cases, and then by name: records of pictures that are right, in the order
                of the cases. They stand in the report's tables as a limit
    facts       what else is known of the scorer, as plain JSON, for the results
    about       a section of the report (Markdown) on how far the scorer is to be trusted
    """

    name: str
    version: str
    score: Callable[[UInt8[np.ndarray, "B S S 3"], Sequence[Case]], list[Record]]
    metrics: tuple[Metric, ...]
    distances: tuple[Distance, ...] = ()
    references: Mapping[str, Mapping[str, Sequence[Record]]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True)
class Axis:
    """A metric as an axis of the trade-off figure, and in the sentences about it.

    noun   what the metric is a share of: "the boxes" are "3.1 points more of the boxes"
    fewer  what less of them is called
    """

    metric: str
    title: str
    noun: str
    fewer: str = "less"


@dataclass(frozen=True)
class TradeOff:
    """The two metrics that a study weighs against each other, on the axes of its figure."""

    x: Axis
    y: Axis


def metrics_of(scorers: Sequence[Scorer]) -> tuple[Metric, ...]:
    return tuple(metric for scorer in scorers for metric in scorer.metrics)


def distances_of(scorers: Sequence[Scorer]) -> tuple[Distance, ...]:
    return tuple(distance for scorer in scorers for distance in scorer.distances)


def check_scorers(scorers: Sequence[Scorer], trade_off: TradeOff) -> None:
    """Raises ValueError for a name that two have, and for an axis that no metric is."""
    metrics = [metric.name for metric in metrics_of(scorers)]
    columns = metrics + [distance.name for distance in distances_of(scorers)]
    for kind, names in (("scorers", [s.name for s in scorers]), ("metrics", columns)):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two {kind} are called {twice[0]!r}: rename one of them")
    for axis in (trade_off.x, trade_off.y):
        if axis.metric not in metrics:
            raise ValueError(
                f"the trade-off is over {axis.metric!r}, which no scorer measures: choose one of "
                f"{', '.join(metrics)}"
            )

"""How images are scored: a `Scorer` is a value with everything a study and its report need.

A new scorer (CLIP score, a detector) is just another of these values; nothing else changes. A study
keeps each scorer's records separate, so a new scorer, or a new version of one, scores the images
that already exist.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.statistics import Interval, Record, Statistic


class Form(NamedTuple):
    """How a report writes numbers: multiplied by `scale`, with so many digits after the point."""

    scale: float = 100
    digits: int = 1

    def scaled(self, numbers: Interval) -> Interval:
        estimate, low, high = (self.scale * number for number in numbers)
        return estimate, low, high

    def text(self, numbers: Interval) -> str:
        estimate, low, high = (f"{number:z.{self.digits}f}" for number in self.scaled(numbers))
        return f"{estimate} [{low}, {high}]"

    def change(self, number: float) -> str:
        return f"{self.scale * number:+.{self.digits}f}"


PERCENT = Form()
Forms = Mapping[str, Form]  # by metric


@dataclass(frozen=True)
class Metric:
    """A number for each condition, estimated with a confidence interval.

    name       its name in results and table headers, unique within a study
    meaning    one line for the report
    statistic  (records, weights of the resamples) -> its value in each resample; see statistics.py
    main       whether it belongs in the report's first table; the second table has the details
    form       how the report writes its numbers: in percent, by default
    """

    name: str
    meaning: str
    statistic: Statistic
    main: bool = False
    form: Form = PERCENT


@dataclass(frozen=True)
class Distance:
    """A number for a whole set of images, without interval; `measure` returns None if undefined."""

    name: str
    meaning: str
    measure: Callable[[Sequence[Record]], float | None]


def as_stored(record: Record, case: Case) -> Record:
    """The judge of scorers whose records need no rules."""
    return record


@dataclass(frozen=True)
class Scorer:
    """Turns images and their cases into records, and records into numbers.

    name        names the folder of its records
    version     must change with anything its records depend on, such as a checksum of its weights;
                records of other versions are ignored
    score       (images [B, S, S, 3], their B cases) -> one record per image: plain JSON with the
                fields that the metrics and distances read, and "features", which may be an array
                and is stored as float16. B differs from call to call, up to `scores.GROUP`
    judge       (record, its case) -> what the metrics and distances read. Records are stored as
                `score` made them and judged at each report, so it may depend on rules that images
                and records do not: which boxes count as ground truth, a threshold
    metrics     in the order of the report's columns
    references  by set of cases, then by name: judged records of real images of these cases, in
                order. The report shows them as the attainable values
    to_photographs  (judged records of the photographs of a set of cases) -> distances to them
    tuned       (this scorer, stored records of photographs, their cases) -> the scorer under rules
                that are chosen on these, if it has rules to choose; see `Data.told`
    preference  the field of a judged record that says how much an image is liked, if there is one;
                the report compares the wirings by the sigmoid of its difference
    facts       anything else known about the scorer, as plain JSON; goes into the results
    about       a Markdown section of the report: how reliable the scorer is
    """

    name: str
    version: str
    score: Callable[[UInt8[np.ndarray, "B S S 3"], Sequence[Case]], list[Record]]
    metrics: tuple[Metric, ...]
    judge: Callable[[Record, Case], Record] = as_stored
    distances: tuple[Distance, ...] = ()
    references: Mapping[str, Mapping[str, Sequence[Record]]] = field(default_factory=dict)
    to_photographs: Callable[[Sequence[Record]], tuple[Distance, ...]] | None = None
    tuned: Callable[["Scorer", Sequence[Record], Sequence[Case]], "Scorer"] | None = None
    preference: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True)
class Axis:
    """A metric as an axis of the trade-off figure and in the report's sentences.

    noun   what there is more or less of: "of the boxes" gives "3.1 points more of the boxes"
    fewer  the opposite of "more" for that noun
    level  what may be the same: "share of boxes" gives "at the same share of boxes"
    """

    metric: str
    title: str
    noun: str
    fewer: str = "less"
    level: str = ""


@dataclass(frozen=True)
class TradeOff:
    """The two metrics that a study weighs against each other: the axes of its figure."""

    x: Axis
    y: Axis


def metrics_of(scorers: Sequence[Scorer]) -> tuple[Metric, ...]:
    return tuple(metric for scorer in scorers for metric in scorer.metrics)


def forms_of(scorers: Sequence[Scorer]) -> dict[str, Form]:
    return {metric.name: metric.form for metric in metrics_of(scorers)}


def check_scorers(scorers: Sequence[Scorer], trade_off: TradeOff | None) -> None:
    """Raises ValueError if a name is used twice, or an axis is not a metric of any scorer."""
    metrics = [metric.name for metric in metrics_of(scorers)]
    columns = metrics + [distance.name for scorer in scorers for distance in scorer.distances]
    for kind, names in (("scorers", [s.name for s in scorers]), ("metrics", columns)):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two {kind} are called {twice[0]!r}: rename one of them")
    for axis in (trade_off.x, trade_off.y) if trade_off is not None else ():
        if axis.metric not in metrics:
            raise ValueError(
                f"the trade-off is over {axis.metric!r}, which no scorer measures: choose one of "
                f"{', '.join(metrics)}"
            )

"""All numbers of a study: conditions, differences between methods, references."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from reground_jax.evaluation.conditions import ENDS, SINGLE, Condition
from reground_jax.evaluation.scorer import Scorer
from reground_jax.evaluation.statistics import (
    Interval,
    Record,
    Weights,
    above_curve,
    bootstrap_weights,
    interval,
)
from reground_jax.evaluation.study import Records

Row = dict[str, Any]  # what was measured, and its numbers by metric name
Values = Mapping[str, np.ndarray]  # by metric, one value per resample


def summarize(records: Records, scorers: Sequence[Scorer], along: str) -> dict[str, list[Row]]:
    """The numbers as JSON: conditions, their differences, and the scorers' references.

    "differences" compare with the sequential wiring at the same gamma, and methods other than
    parallel with that, too; "equal_boxes" compare with them at the interpolated gamma where the
    metric `along` (the share of boxes that are filled) is the same. "beside" names the one that a
    row is compared with. Every metric is (estimate, low, high), or null where nothing was asked
    for; distances are single numbers and have no differences.
    """
    # They depend only on the number of images, so conditions on the same cases are paired.
    weights = functools.cache(bootstrap_weights)
    values = {c: _values(found, scorers, weights(_count(found))) for c, found in records.items()}
    return {
        "conditions": [
            _row(vars(condition), found, values[condition], scorers)
            for condition, found in records.items()
        ],
        "differences": [
            _row_beside(
                twin, condition, {n: v - values[twin][n] for n, v in values[condition].items()}
            )
            for condition, curve in _compared(records)
            for twin in curve
            if twin.gamma == condition.gamma
        ],
        "equal_boxes": [
            _row_beside(
                curve[0], condition, _above(values[condition], [values[c] for c in curve], along)
            )
            for condition, curve in _compared(records)
        ],
        "references": [
            _row(what, found, _values(found, scorers, weights(_count(found))), scorers)
            for what, found in _references(records, scorers)
        ],
    }


def _count(found: Mapping[str, Sequence[Record]]) -> int:
    """How many images a condition has."""
    return len(next(iter(found.values())))


def _values(
    found: Mapping[str, Sequence[Record]], scorers: Sequence[Scorer], weights: Weights
) -> dict[str, np.ndarray]:
    """Every metric of the scorers that have records in `found`, in each resample."""
    return {
        metric.name: metric.statistic(found[scorer.name], weights)
        for scorer in scorers
        if scorer.name in found
        for metric in scorer.metrics
    }


def _references(
    records: Records, scorers: Sequence[Scorer]
) -> list[tuple[Row, dict[str, Sequence[Record]]]]:
    """(cases and name, records by scorer) of each reference, for as many cases as were measured.

    The numbers must match, because distances are biased by the number of images.
    """
    counts = {condition.cases: _count(found) for condition, found in records.items()}
    names = {
        (cases, name): None  # in order, each once
        for scorer in scorers
        for cases, known in scorer.references.items()
        for name in known
        if cases in counts
    }
    return [
        (
            {"cases": cases, "method": name},
            {
                scorer.name: scorer.references[cases][name][: counts[cases]]
                for scorer in scorers
                if name in scorer.references.get(cases, ())
            },
        )
        for cases, name in names
    ]


def _compared(records: Iterable[Condition]) -> list[tuple[Condition, list[Condition]]]:
    """Conditions, each with a curve over gamma to compare it with: the first model's on its cases.

    All methods but those measured only once are compared with the sequential wiring, and all but
    the parallel wiring with the parallel one.
    """
    known = list(records)
    pairs = [
        (c, [s for s in known if (s.model, s.method, s.cases) == (known[0].model, end, c.cases)])
        for end in ENDS
        for c in known
        if c.method not in (*ENDS[: ENDS.index(end) + 1], *SINGLE)
    ]
    return [(condition, curve) for condition, curve in pairs if curve]


def _above(values: Values, curve: Sequence[Values], along: str) -> dict[str, np.ndarray]:
    """How far every metric lies above a curve over the metric `along`."""
    x = np.array([point[along] for point in curve])
    return {
        name: above_curve(values[along], value, x, np.array([point[name] for point in curve]))
        for name, value in values.items()
        if name != along
    }


def _row_beside(other: Condition, condition: Condition, values: Values) -> Row:
    numbers = {name: _interval(value) for name, value in values.items()}
    return {**vars(condition), "beside": other.method, **numbers}


def _row(
    what: Mapping[str, Any],
    found: Mapping[str, Sequence[Record]],
    values: Values,
    scorers: Sequence[Scorer],
) -> Row:
    numbers = {name: _interval(value) for name, value in values.items()}
    distances = {}
    for scorer in scorers:
        for distance in scorer.distances if scorer.name in found else ():
            measured = distance.measure(found[scorer.name])
            distances[distance.name] = None if measured is None else round(measured, 3)
    return {**what, "images": _count(found), **numbers, **distances}


def _interval(values: np.ndarray) -> Interval | None:
    numbers = interval(values)
    if math.isnan(numbers[0]):
        return None
    estimate, low, high = (round(number, 5) for number in numbers)
    return estimate, low, high

"""All numbers of a study: conditions, differences between methods, references.

Records are read one condition at a time, and only each metric's values in the resamples are kept.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reground_jax.evaluation.reports.comparison import preference, shares
from reground_jax.evaluation.scorer import Scorer, as_stored
from reground_jax.evaluation.statistics import (
    Interval,
    Record,
    Weights,
    above_curve,
    bootstrap_weights,
    interval,
)
from reground_jax.evaluation.studies.conditions import ENDS, SINGLE, Condition
from reground_jax.evaluation.studies.study import Study

Row = dict[str, Any]  # what was measured, and its numbers by metric name
Values = Mapping[str, np.ndarray]  # by metric, one value per resample
Found = Mapping[str, Sequence[Record]]  # by scorer
PHOTOGRAPHS, CHANCE = "photographs", "other layouts"  # references


@dataclass(frozen=True)
class Measured:
    """The numbers of a condition or reference, over so many images."""

    images: int
    values: Values
    distances: Mapping[str, float | None]


def summarize(study: Study) -> dict[str, list[Row]]:
    """The numbers as JSON: conditions, their differences, and references.

    "differences" compare with the sequential wiring at the same gamma, and methods other than
    parallel with that, too; "equal_boxes" compare with them at the interpolated gamma where the
    trade-off's first metric (the share of boxes that are filled) is the same. "beside" names the
    one that a row is compared with. Every metric is (estimate, low, high), or null where nothing
    was asked for; distances are single numbers and have no differences. "shares" and "preferences"
    are of comparison.py.
    """
    measure = _Measure(study)
    measured = {c: measure.condition(c) for c in study.conditions()}
    values = {condition: found.values for condition, found in measured.items()}
    return {
        "conditions": [_row(vars(condition), found) for condition, found in measured.items()],
        "differences": [
            _row_beside(twin, condition, _minus(values[condition], values[twin]))
            for condition, curve in _compared(measured)
            for twin in curve
            if twin.gamma == condition.gamma
        ],
        "equal_boxes": [
            _row_beside(curve[0], condition, _above(values[condition], on_curve, along))
            for along in ([study.trade_off.x.metric] if study.trade_off else [])
            for condition, curve in _compared(measured)
            for on_curve in [[values[c] for c in curve]]
        ],
        "shares": [
            row | {name: rounded(found) for name, found in numbers.items()}
            for row, numbers in (shares(values, study.trade_off) if study.trade_off else [])
        ],
        "preferences": [
            row | {name: rounded(found) for name, found in numbers.items()}
            for scorer in study.scorers
            if scorer.preference
            for row, numbers in _preferences(study, scorer, measure.weights)
        ],
        "references": [_row(what, found) for what, found in measure.references(measured)],
    }


class _Measure:
    """Measures records of a study. Conditions of as many layouts have the same weights, so they
    are paired."""

    def __init__(self, study: Study):
        self.study = study
        self._weights = functools.cache(bootstrap_weights)

    def weights(self, images: int, seeds: int = 1) -> Weights:
        """Of the images of a condition; the seeds of a layout stay together."""
        return np.tile(self._weights(images // seeds), seeds)

    def condition(self, condition: Condition) -> Measured:
        records = self.study.records(condition)
        return self._measured(records, condition.cases, len(self.study.seeds))

    def _measured(self, found: Found, cases: str, seeds: int) -> Measured:
        """Of the scorers that have records in `found`."""
        scorers = [scorer for scorer in self.study.scorers if scorer.name in found]
        images = len(next(iter(found.values())))
        weights = self.weights(images, seeds)
        return Measured(
            images,
            {m.name: m.statistic(found[s.name], weights) for s in scorers for m in s.metrics},
            {
                distance.name: distance.measure(found[scorer.name])
                for scorer, distance in self.study.distances[cases]
                if scorer.name in found
            },
        )

    def references(self, measured: Mapping[Condition, Measured]) -> list[tuple[Row, Measured]]:
        """(cases and name, numbers) of what is attainable, and of chance."""
        found: list[tuple[Row, Measured]] = []
        for cases in self.study.data.sets:
            known = [c for c in measured if c.cases == cases.name]
            if not known:
                continue
            for name, records in self._shipped(cases.name, cases.count).items():
                found.append((_what(cases.name, name), self._measured(records, cases.name, 1)))
            if cases.name in self.study.photographs:
                records = self.study.photograph_records(cases.name)
                real = self._measured(records, cases.name, 1)
                found.append((_what(cases.name, PHOTOGRAPHS), real))
            if chance := self._permuted(max(known, key=lambda c: c.gamma), cases.used):
                found.append((_what(cases.name, CHANCE), self._measured(chance, cases.name, 1)))
        return found

    def _shipped(self, cases: str, count: int) -> dict[str, dict[str, Sequence[Record]]]:
        """By name, then scorer: of as many cases as were measured.

        The numbers must match, because distances are biased by the number of images.
        """
        found: dict[str, dict[str, Sequence[Record]]] = {}
        for scorer in self.study.scorers:
            for name, records in scorer.references.get(cases, {}).items():
                found.setdefault(name, {})[scorer.name] = records[:count]
        return found

    def _permuted(self, condition: Condition, cases: Sequence[Any]) -> Found:
        """A condition's images judged by the next case's layout, by scorers that judge."""
        judging = [s for s in self.study.scorers if s.judge is not as_stored]
        if not judging or len(cases) < 2:
            return {}
        stored = self.study.stored(condition, judging)
        others = [*cases[1:], cases[0]]
        return {
            scorer.name: [
                scorer.judge(*pair)
                for pair in zip(stored[scorer.name][: len(cases)], others, strict=True)
            ]
            for scorer in judging
        }


def _what(cases: str, name: str) -> Row:
    return {"cases": cases, "method": name}


def _preferences(study: Study, scorer: Scorer, weights: Any) -> list[tuple[Row, Any]]:
    """The parallel wiring beside the sequential one, where both have the same gamma."""
    conditions = set(study.conditions())
    found = []
    for condition in study.conditions():
        twin = Condition(condition.model, condition.cases, ENDS[0], condition.gamma)
        if condition.method == ENDS[1] and twin in conditions:
            here, there = (
                np.array(
                    [r[scorer.preference] for r in study.records(c, [scorer])[scorer.name]],
                    np.float64,
                )
                for c in (condition, twin)
            )
            rows = weights(len(here), len(study.seeds))
            row = {**vars(condition), "beside": ENDS[0], "scorer": scorer.name}
            found.append((row, preference(here, there, rows)))
    return found


def _compared(measured: Iterable[Condition]) -> list[tuple[Condition, list[Condition]]]:
    """Conditions, each with a curve over gamma to compare it with: the first model's on its cases.

    All methods but those measured only once are compared with the sequential wiring, and all but
    the parallel wiring with the parallel one.
    """
    known = list(measured)
    pairs = [
        (c, [s for s in known if (s.model, s.method, s.cases) == (known[0].model, end, c.cases)])
        for end in ENDS
        for c in known
        if c.method not in (*ENDS[: ENDS.index(end) + 1], *SINGLE)
    ]
    return [(condition, curve) for condition, curve in pairs if curve]


def _minus(values: Values, others: Values) -> Values:
    return {name: value - others[name] for name, value in values.items()}


def _above(values: Values, curve: Sequence[Values], along: str) -> Values:
    """How far every metric lies above a curve over the metric `along`."""
    x = np.array([point[along] for point in curve])
    above = {}
    for name, value in values.items():
        if name != along:
            some = min(len(value), len(values[along]))  # a metric may have fewer resamples
            y = np.array([point[name][:some] for point in curve])
            above[name] = above_curve(values[along][:some], value[:some], x[:, :some], y)
    return above


def _row_beside(other: Condition, condition: Condition, values: Values) -> Row:
    numbers = {name: rounded(value) for name, value in values.items()}
    return {**vars(condition), "beside": other.method, **numbers}


def _row(what: Mapping[str, Any], found: Measured) -> Row:
    numbers = {name: rounded(value) for name, value in found.values.items()}
    distances = {n: None if d is None else round(d, 3) for n, d in found.distances.items()}
    return {**what, "images": found.images, **numbers, **distances}


def rounded(values: np.ndarray) -> Interval | None:
    """(estimate, low, high) of a statistic's values, or None if it is undefined."""
    numbers = interval(values)
    if math.isnan(numbers[0]):
        return None
    estimate, low, high = (round(number, 5) for number in numbers)
    return estimate, low, high

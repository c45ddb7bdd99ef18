"""Differences with their intervals as an SVG, a row each, grouped by set of cases."""

from collections.abc import Sequence
from dataclasses import dataclass

from reground_jax.evaluation.reports.svg import MUTED, RULE, axis, document, dot, line, text
from reground_jax.evaluation.statistics import Interval

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 720, 26, 250, 24, 40, 56


@dataclass(frozen=True)
class Difference:
    """An estimate and its interval, in points."""

    label: str
    color: str
    numbers: Interval


@dataclass(frozen=True)
class Group:
    title: str
    differences: Sequence[Difference]


def forest_svg(groups: Sequence[Group], *, title: str, x_title: str) -> str:
    """The complete SVG. Raises ValueError if there is nothing to plot."""
    found = [number for g in groups for d in g.differences for number in d.numbers]
    if not found:
        raise ValueError("there is nothing to plot: give a difference")
    ticks = axis([0.0, *found])
    rows = sum(1 + len(group.differences) for group in groups)
    bottom = TOP + ROW * rows

    def across(value: float) -> float:
        return LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - LEFT - RIGHT)

    parts = [text(16, 24, title, "start")]
    for tick in ticks:
        x, label = across(tick), f"{tick:+g}" if tick else "0"
        parts.append(line(x, TOP, x, bottom, RULE if tick else MUTED))
        parts.append(text(x, bottom + 20, label, "middle", MUTED))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 44, x_title, "middle"))
    y = TOP
    for group in groups:
        y += ROW
        parts.append(text(16, y - 8, group.title, "start", MUTED))
        for difference in group.differences:
            y += ROW
            estimate, low, high = difference.numbers
            parts += [
                text(LEFT - 12, y - 8, difference.label, "end"),
                line(across(low), y - 12, across(high), y - 12, difference.color),
                dot(across(estimate), y - 12, difference.color),
            ]
    return document(WIDTH, bottom + BOTTOM, parts)

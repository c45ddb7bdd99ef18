"""The figures of a report: the trade-off between two metrics, and a grid of examples."""

import itertools
from collections.abc import Mapping, Sequence

from PIL import Image

from reground_jax.draw import comparison_grid
from reground_jax.evaluation.conditions import SINGLE, Condition
from reground_jax.evaluation.plot import Curve, Panel, Point, tradeoff_svg
from reground_jax.evaluation.scorer import TradeOff
from reground_jax.evaluation.statistics import Interval
from reground_jax.evaluation.study import Study
from reground_jax.evaluation.summary import Row

GRID_ROWS = 8
GRID_METHODS = ("no_grounding", "sequential", "parallel")
COLORS = {"sequential": "#cf222e", "parallel": "#0969da"}
OTHER_COLOR, SINGLE_COLOR = "#1a7f37", "#656d76"  # of other models, of methods without a curve
BETWEEN = ("#8250df", "#bf8700", "#1b7c83", "#d15704", "#bf3989", "#24292f")  # of further methods


def grid(study: Study, conditions: Sequence[Condition]) -> Image.Image:
    """The main set's first layouts with at least two boxes, by method, at the largest gamma."""
    model, name = conditions[0].model, conditions[0].cases
    gamma = max(c.gamma for c in conditions)
    cases = study.cases[name]
    shown = [row for row, case in enumerate(cases) if len(case.layout.boxes) > 1][:GRID_ROWS]
    columns = {
        method: list(study.images(Condition(model, name, method, gamma), shown[-1] + 1)[shown])
        for method in GRID_METHODS
    }
    return comparison_grid([cases[row].layout for row in shown], columns)


def trade_off_figure(
    rows: Sequence[Row], trade_off: TradeOff, titles: Mapping[str, str]
) -> str | None:
    """The study's conditions as an SVG; None if none of them has both metrics."""
    drawn = panels(rows, trade_off, titles)
    if not drawn:
        return None
    return tradeoff_svg(drawn, x_title=trade_off.x.title, y_title=trade_off.y.title)


def panels(rows: Sequence[Row], trade_off: TradeOff, titles: Mapping[str, str]) -> list[Panel]:
    """One panel per set of cases that has values on both axes."""
    told = [row for row in rows if has_both(row, trade_off)]
    return [
        Panel(titles.get(name, name), curves([r for r in told if r["cases"] == name], trade_off))
        for name in dict.fromkeys(row["cases"] for row in told)
    ]


def has_both(row: Row, trade_off: TradeOff) -> bool:
    return row[trade_off.x.metric] is not None and row[trade_off.y.metric] is not None


def curves(rows: Sequence[Row], trade_off: TradeOff) -> list[Curve]:
    """One line over gamma per model and method; methods measured only once are single points."""
    main = rows[0]["model"]
    lines: dict[tuple[str, str], list[Point]] = {}
    for row in sorted(rows, key=lambda row: row["gamma"]):
        x, y = (percent(row[axis.metric]) for axis in (trade_off.x, trade_off.y))
        point = Point(_label(row, main), x, y)
        lines.setdefault((row["model"], row["method"]), []).append(point)
    further = [method for _, method in lines if method not in (*COLORS, *SINGLE)]
    colors = COLORS | dict(zip(further, itertools.cycle(BETWEEN)))
    return [
        Curve(
            method if model == main else f"{method}, {model}",
            colors.get(method, SINGLE_COLOR) if model == main else OTHER_COLOR,
            points,
            dashed=model != main,
            below=method != "parallel",
        )
        for (model, method), points in lines.items()
    ]


def _label(row: Row, main: str) -> str:
    """A gamma, or the name of a method without a curve; empty if another point has that label."""
    if row["method"] in SINGLE:
        return row["method"]
    # Gamma 0 means no grounding, and all curves have the same gammas in the same order.
    labeled = row["model"] == main and row["method"] in COLORS and row["gamma"] > 0
    return f"γ {row['gamma']:g}" if labeled else ""


def percent(numbers: Interval) -> Interval:
    estimate, low, high = (100 * number for number in numbers)
    return estimate, low, high

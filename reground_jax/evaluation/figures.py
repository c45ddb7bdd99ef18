"""The figures of a report: the trade-off between two metrics, and a grid of examples."""

from collections.abc import Mapping, Sequence

from PIL import Image

from reground_jax.draw import comparison_grid
from reground_jax.evaluation.conditions import Condition
from reground_jax.evaluation.plot import Curve, Panel, Point, tradeoff_svg
from reground_jax.evaluation.scorers import TradeOff
from reground_jax.evaluation.statistics import Interval
from reground_jax.evaluation.study import Study
from reground_jax.evaluation.summary import Row
from reground_jax.settings import Wiring

GRID_ROWS = 8
GRID_WIRINGS: tuple[Wiring, ...] = ("no_grounding", "sequential", "parallel")
COLORS = {"sequential": "#cf222e", "parallel": "#0969da"}
OTHER_COLOR, SINGLE_COLOR = "#1a7f37", "#656d76"


def grid(study: Study, conditions: Sequence[Condition]) -> Image.Image:
    """The main set's first layouts with at least two boxes, by wiring, at the largest gamma."""
    model, name = conditions[0].model, conditions[0].cases
    gamma = max(c.gamma for c in conditions)
    cases = study.cases[name]
    shown = [row for row, case in enumerate(cases) if len(case.layout.boxes) > 1][:GRID_ROWS]
    columns = {
        wiring: list(study.images(Condition(model, name, wiring, gamma), shown[-1] + 1)[shown])
        for wiring in GRID_WIRINGS
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
    """One line over gamma per model and main wiring; the other wirings are single points."""
    main = rows[0]["model"]
    lines: dict[tuple[str, str], list[Point]] = {}
    for row in sorted(rows, key=lambda row: row["gamma"]):
        x, y = (percent(row[axis.metric]) for axis in (trade_off.x, trade_off.y))
        point = Point(_label(row, main), x, y)
        lines.setdefault((row["model"], row["wiring"]), []).append(point)
    return [
        Curve(
            wiring if model == main else f"{wiring}, {model}",
            COLORS.get(wiring, SINGLE_COLOR) if model == main else OTHER_COLOR,
            points,
            dashed=model != main,
            below=wiring != "parallel",
        )
        for (model, wiring), points in lines.items()
    ]


def _label(row: Row, main: str) -> str:
    """A gamma, or the name of a wiring without a curve; empty if another point has that label."""
    if row["wiring"] not in COLORS:
        return row["wiring"]
    # Gamma 0 means no grounding, and all curves have the same gammas in the same order.
    return f"γ {row['gamma']:g}" if row["model"] == main and row["gamma"] > 0 else ""


def percent(numbers: Interval) -> Interval:
    estimate, low, high = (100 * number for number in numbers)
    return estimate, low, high

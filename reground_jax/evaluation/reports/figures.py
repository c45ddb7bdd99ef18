"""The figures of a report: trade-off, differences, and grids of examples."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from reground_jax.draw import comparison_grid
from reground_jax.evaluation.reports.forest import Difference, Group, forest_svg
from reground_jax.evaluation.reports.summary import PHOTOGRAPHS, Row
from reground_jax.evaluation.reports.tradeoff import Curve, Panel, Point, tradeoff_svg
from reground_jax.evaluation.scorer import PERCENT, Forms, TradeOff, metrics_of
from reground_jax.evaluation.statistics import Record, Statistic
from reground_jax.evaluation.studies.conditions import ENDS, SINGLE, Condition
from reground_jax.evaluation.studies.study import Study

GRID_ROWS = 8
GRID_METHODS = ("no_grounding", "sequential", "parallel")
COLORS = {"sequential": "#cf222e", "parallel": "#0969da"}
OTHER_COLOR, SINGLE_COLOR = "#1a7f37", "#656d76"  # of other models, of methods without a curve
BETWEEN = ("#8250df", "#bf8700", "#1b7c83", "#d15704", "#bf3989", "#24292f")  # of further methods
BLOCK = 500  # layouts whose own value of a metric is computed at a time


# ---- pictures


def grid(study: Study) -> Image.Image | None:
    """Layouts of the main set with at least two boxes, chosen by their ids' hashes, by method."""
    cases = study.data.sets[0].used
    several = [line for line, case in enumerate(cases) if len(case.layout.boxes) > 1]
    order = {
        line: hashlib.sha256(f"grid:{cases[line].layout.id}".encode()).digest() for line in several
    }
    return _grid(study, sorted(sorted(several, key=order.__getitem__)[:GRID_ROWS]))


def extremes(study: Study) -> Image.Image | None:
    """The layouts whose trade-off's second metric the parallel wiring improves and worsens most.

    None without a trade-off, or without both wirings at the largest gamma.
    """
    conditions = _compared(study)
    if study.trade_off is None or any(method not in conditions for method in ENDS):
        return None
    name = study.trade_off.y.metric
    scorer = next(s for s in study.scorers if name in [m.name for m in s.metrics])
    metric = next(m for m in scorer.metrics if m.name == name)
    count = study.data.sets[0].count
    gain = np.subtract(
        *(
            each(metric.statistic, study.records(conditions[method], [scorer])[scorer.name][:count])
            for method in reversed(ENDS)
        )
    )
    order = [int(line) for line in np.argsort(-np.nan_to_num(gain), kind="stable")]
    half = GRID_ROWS // 2
    most, least = order[:half], order[-half:]
    chosen = [n for n in most if gain[n] > 0] + [n for n in least if gain[n] < 0]
    return _grid(study, chosen, [metric.form.change(gain[line]) for line in chosen])


def each(statistic: Statistic, records: Sequence[Record]) -> np.ndarray:
    """A statistic of each record alone; NaN where it is undefined."""
    rows = range(len(records))
    return np.concatenate(
        [
            statistic(records, np.equal.outer(rows[i : i + BLOCK], rows).astype(np.float64))
            for i in range(0, len(records), BLOCK)
        ]
    )


def _compared(study: Study) -> dict[str, Condition]:
    """The main set's conditions at the largest gamma, by method."""
    conditions = study.conditions()
    model, cases = conditions[0].model, study.data.sets[0].name
    own = [c for c in conditions if (c.model, c.cases) == (model, cases)]
    gamma = max(c.gamma for c in own)
    return {c.method: c for c in own if c.gamma == gamma}


def _grid(study: Study, lines: Sequence[int], labels: Sequence[str] = ()) -> Image.Image | None:
    conditions = _compared(study)
    columns = {
        method: study.pictures(conditions[method], lines)
        for method in GRID_METHODS
        if method in conditions
    }
    if not lines or not columns:
        return None
    layouts = [study.data.sets[0].used[line].layout for line in lines]
    return comparison_grid(layouts, columns, row_labels=labels)


# ---- plots


def differences_figure(rows: Sequence[Row], study: Study, titles: Mapping[str, str]) -> str | None:
    """Parallel minus sequential wiring at equal gamma, each main metric a row, by set of cases."""
    groups = []
    metrics = [metric for metric in metrics_of(study.scorers) if metric.main]
    main = next(iter(study.models))
    for name in dict.fromkeys(row["cases"] for row in rows):
        own = [
            row for row in rows
            if (row["cases"], row["model"], row["method"]) == (name, main, "parallel")
        ]  # fmt: skip
        found = [
            Difference(
                f"{m.name}, γ {row['gamma']:g}", COLORS["parallel"], m.form.scaled(row[m.name])
            )
            for m in metrics
            for row in own
            if row[m.name] is not None
        ]
        if found:
            groups.append(Group(titles.get(name, name).partition(":")[0], found))
    if not groups:
        return None
    title = "Parallel minus sequential wiring at equal γ, 95 % intervals"
    return forest_svg(groups, title=title, x_title="points")


def trade_off_figure(
    rows: Sequence[Row],
    trade_off: TradeOff,
    titles: Mapping[str, str],
    forms: Forms | None = None,
) -> str | None:
    """The study's conditions as an SVG; None if none of them has both metrics."""
    drawn = panels(rows, trade_off, titles, forms)
    if not drawn:
        return None
    return tradeoff_svg(drawn, x_title=trade_off.x.title, y_title=trade_off.y.title)


def panels(
    rows: Sequence[Row],
    trade_off: TradeOff,
    titles: Mapping[str, str],
    forms: Forms | None = None,
) -> list[Panel]:
    """One panel per set of cases that has values on both axes."""
    told = [row for row in rows if has_both(row, trade_off)]
    return [
        Panel(
            titles.get(name, name),
            curves([r for r in told if r["cases"] == name], trade_off, forms or {}),
        )
        for name in dict.fromkeys(row["cases"] for row in told if "gamma" in row)
    ]


def has_both(row: Row, trade_off: TradeOff | None) -> bool:
    return trade_off is not None and all(
        row.get(axis.metric) is not None for axis in (trade_off.x, trade_off.y)
    )


def curves(rows: Sequence[Row], trade_off: TradeOff, forms: Forms) -> list[Curve]:
    """One line over gamma per model and method; methods measured only once are single points."""
    main = rows[0]["model"]
    lines: dict[tuple[str, str], list[Point]] = {}
    for row in sorted(rows, key=lambda row: row.get("gamma", 0)):
        if row["method"] != PHOTOGRAPHS and "gamma" not in row:
            continue  # other references
        x, y = (
            forms.get(axis.metric, PERCENT).scaled(row[axis.metric])
            for axis in (trade_off.x, trade_off.y)
        )
        point = Point(_label(row, main), x, y)
        lines.setdefault((row.get("model", main), row["method"]), []).append(point)
    further = [method for _, method in lines if method not in (*COLORS, *SINGLE, PHOTOGRAPHS)]
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
    if row["method"] in (*SINGLE, PHOTOGRAPHS):
        return row["method"]
    # Gamma 0 means no grounding, and all curves have the same gammas in the same order.
    labeled = row["model"] == main and row["method"] in COLORS and row["gamma"] > 0
    return f"γ {row['gamma']:g}" if labeled else ""

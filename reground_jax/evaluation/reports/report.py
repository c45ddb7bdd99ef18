"""Writes a study's results: results.json, report.md, tradeoff.svg, differences.svg and grids."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from reground_jax.evaluation.reports import sentences
from reground_jax.evaluation.reports.figures import (
    differences_figure,
    extremes,
    grid,
    trade_off_figure,
)
from reground_jax.evaluation.reports.paper import PAPER, Known
from reground_jax.evaluation.reports.summary import Row, summarize
from reground_jax.evaluation.scorer import PERCENT, Form, Forms, forms_of, metrics_of
from reground_jax.evaluation.statistics import Interval
from reground_jax.evaluation.studies.conditions import ENDS
from reground_jax.evaluation.studies.study import Study

FIGURES = {
    "tradeoff.svg": "trade-off",
    "differences.svg": "differences with their intervals",
    "grid.png": "layouts chosen by hash",
    "extremes.png": "the largest gains and losses",
}
CAUTION = (
    "The paper's numbers are of a CLIP, a detector, images and boxes that it does not name. They "
    "are not those used here, so compare signs, differences and shares, not values."
)


def write_report(study: Study, command: str) -> dict[str, Any]:
    """Writes the files into the study's folder and returns the content of results.json.

    Scorers choose their rules first; see `Study.tuned`. Raises ValueError if images or scores are
    missing.
    """
    study = study.tuned()
    results = {
        "command": command,
        "settings": study.settings.to_json(),
        **study.identity,
        **study.data.identity,
        "seeds": list(study.seeds),
        "cases": study.data.facts,
        "scorers": {s.name: {"version": s.version, **s.facts} for s in study.scorers},
        **summarize(study),
    }
    titles = {found.name: found.title for found in study.data.sets}
    forms = forms_of(study.scorers)
    drawn: dict[str, Any] = {
        "differences.svg": differences_figure(results["differences"], study, titles),
        "grid.png": grid(study),
        "extremes.png": extremes(study),
    }
    if study.trade_off is not None:
        rows = results["conditions"] + results["references"]
        drawn["tradeoff.svg"] = trade_off_figure(rows, study.trade_off, titles, forms)
    made = {name: figure for name, figure in drawn.items() if figure is not None}
    study.save("results.json", json.dumps(results).encode() + b"\n")
    for name, figure in made.items():
        study.save(name, _png(figure) if isinstance(figure, Image.Image) else figure.encode())
    study.save("report.md", markdown(results, study, list(made)).encode())
    return results


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def markdown(results: Mapping[str, Any], study: Study, figures: Sequence[str]) -> str:
    """The report's text, made from the content of results.json. figures: those that there are."""
    settings, scorers = results["settings"], study.scorers
    titles = {found.name: found.title for found in study.data.sets}
    paper = {found.name: found.paper for found in study.data.sets}
    shown = {name: f"![{FIGURES[name]}]({name})" for name in figures}
    parts = [
        "# Boxes and text: what gamma and the wiring do",
        f"`{results['command']}`",
        f"{settings['num_steps']} steps of {settings['solver']}, guidance "
        f"{settings['guidance_scale']:g}, {settings['dtype']}. Percentages with "
        "95 % intervals of a bootstrap over layouts; differences are paired by layout and seed.",
        *(shown[name] for name in ("tradeoff.svg", "differences.svg") if name in shown),
    ]
    if study.trade_off is not None:
        parts += sentences.findings(results, study.trade_off, titles, forms_of(scorers))
        parts += sentences.shares(results, study.trade_off, titles, paper)
        parts += sentences.both_ends(results, study.trade_off, titles)
    parts += sentences.preferences(results, titles, paper)
    parts += [scorer.about for scorer in scorers if scorer.about]
    parts += sentences.thresholds(results)
    for name in dict.fromkeys(row["cases"] for row in results["conditions"]):
        parts += _section(name, results, study)
    distances = [distance for found in study.distances.values() for _, distance in found]
    columns = {column.name: column for column in (*metrics_of(scorers), *distances)}.values()
    measured = {k for r in results["conditions"] for k, v in r.items() if v is not None}
    meanings = [f"- **{c.name}**: {c.meaning}" for c in columns if c.name in measured]
    parts += ["## What the columns are", "\n".join(meanings)]
    for name, title in (("grid.png", "Layouts chosen by hash"), ("extremes.png", _extremes(study))):
        if name in shown:
            parts += [f"## {title}", shown[name]]
    return "\n\n".join(parts) + "\n"


def _extremes(study: Study) -> str:
    noun = study.trade_off.y.noun if study.trade_off else ""
    return f"Where the parallel wiring gains most and loses most {noun} (points at the left)"


def _section(name: str, results: Mapping[str, Any], study: Study) -> list[str]:
    """The tables of one set of cases."""

    def of(kind: str) -> list[Row]:
        return [row for row in results[kind] if row["cases"] == name]

    metrics, forms = metrics_of(study.scorers), forms_of(study.scorers)
    main = [metric.name for metric in metrics if metric.main]
    details = [metric.name for metric in metrics if not metric.main]
    distances = [distance.name for _, distance in study.distances[name]]
    rows, cases = of("conditions") + of("references"), study.data.of(name)
    parts = [
        f"## {cases.title} ({cases.count} layouts)",
        table(rows, [*main, *distances], forms),
        table(rows, details, forms),
        *beside_paper(rows, study),
    ]
    for end in ENDS:
        same = [row for row in of("differences") if row["beside"] == end]
        if same:
            parts += [
                f"Minus the {end} wiring at the same gamma, in points:",
                table(same, [*main, *details], forms),
            ]
        parts += _equal_boxes([row for row in of("equal_boxes") if row["beside"] == end], study)
    return parts


def _equal_boxes(equal: Sequence[Row], study: Study) -> list[str]:
    """Only where the curve covers them; a row that has main metrics may still lack details."""
    if study.trade_off is None:
        return []
    along = study.trade_off.x
    metrics = sorted(metrics_of(study.scorers), key=lambda metric: not metric.main)
    others = [metric.name for metric in metrics if metric.name != along.metric]
    rows = [row for row in equal if any(row[column] is not None for column in others)]
    if not rows:
        return []
    return [
        f"Minus the {rows[0]['beside']} wiring at the same {along.level}, in points. It is "
        "interpolated along gamma, in each resample by itself:",
        table(rows, others, forms_of(study.scorers)),
    ]


def beside_paper(rows: Sequence[Row], study: Study) -> list[str]:
    """CLIP and YOLO score, as far as they are measured, with the paper's numbers beside them."""
    known: Mapping[tuple[str, float], Known] = {}
    if study.data.trade_offs and rows:
        known = PAPER.get(study.data.of(rows[0]["cases"]).paper, {})
    told = [row for row in rows if (row["method"], row.get("gamma")) in known]
    told = [row for row in told if row["model"] == next(iter(study.models))]
    if not told:
        return []
    trade_off = study.trade_off or study.data.trade_offs[0]
    y, x = trade_off.y.metric, trade_off.x.metric
    forms = forms_of(study.scorers)
    lines = [["method", "gamma", y, "paper: CLIP", x, "paper: YOLO"], ["---"] * 6]
    for row in told:
        theirs = known[row["method"], row["gamma"]]
        cells = [_cell(row.get(y), forms.get(y, PERCENT)), f"{theirs.clip:.2f}"]
        cells += [_cell(row.get(x), forms.get(x, PERCENT)), f"{theirs.yolo:.2f}"]
        lines.append([row["method"], f"{row['gamma']:g}", *cells])
    return [CAUTION, _markdown_table(lines)]


def table(rows: Sequence[Row], columns: Sequence[str], forms: Forms) -> str:
    """A Markdown table with one row per condition; columns without any value are left out."""
    columns = [name for name in columns if any(row.get(name) is not None for row in rows)]
    lines = [["model", "method", "gamma", *columns], ["---"] * (3 + len(columns))]
    for row in rows:
        gamma = f"{row['gamma']:g}" if "gamma" in row else ""
        cells = [_cell(row.get(name), forms.get(name, PERCENT)) for name in columns]
        lines.append([row.get("model", ""), row["method"], gamma, *cells])
    return _markdown_table(lines)


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Interval | float | None, form: Form) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, (int, float)) else form.text(value)

"""Writes a study's results to its folder: results.json, report.md, tradeoff.svg and grid.png."""

from collections.abc import Mapping, Sequence
from typing import Any

from reground_jax.basics.atomic import write_json, write_text
from reground_jax.evaluation.conditions import ENDS
from reground_jax.evaluation.figures import grid, has_both, percent, trade_off_figure
from reground_jax.evaluation.scorer import Axis, TradeOff, distances_of, metrics_of
from reground_jax.evaluation.statistics import Interval
from reground_jax.evaluation.study import Records, Study
from reground_jax.evaluation.summary import Row, summarize
from reground_jax.images import save_png


def write_report(study: Study, records: Records, command: str) -> dict[str, Any]:
    """Writes the four files into the study's folder and returns the content of results.json."""
    results = {
        "command": command,
        "settings": study.settings.to_json(),
        **study.identity,
        "scorers": {s.name: {"version": s.version, **s.facts} for s in study.scorers},
        **summarize(records, study.scorers, study.trade_off.x.metric),
    }
    write_json(study.out / "results.json", results)
    figure = trade_off_figure(results["conditions"], study.trade_off, study.titles)
    if figure is not None:
        write_text(study.out / "tradeoff.svg", figure)
    save_png(study.out / "grid.png", grid(study, list(records)))
    write_text(study.out / "report.md", markdown(results, study))
    return results


def markdown(results: Mapping[str, Any], study: Study) -> str:
    """The report's text, made from the content of results.json."""
    settings, scorers = results["settings"], study.scorers
    figure = any(has_both(row, study.trade_off) for row in results["conditions"])
    parts = [
        "# Boxes and text: what gamma and the wiring do",
        f"`{results['command']}`",
        f"{settings['num_steps']} steps of {settings['solver']}, guidance "
        f"{settings['guidance_scale']:g}, {settings['dtype']}. Percentages with "
        "95 % intervals of a bootstrap over layouts; differences are paired by layout and seed.",
        *(["![trade-off](tradeoff.svg)"] if figure else []),
        *findings(results, study.trade_off, study.titles),
        *both_ends(results, study.trade_off, study.titles),
        *(scorer.about for scorer in scorers if scorer.about),
    ]
    for name in dict.fromkeys(row["cases"] for row in results["conditions"]):
        parts += _section(name, results, study)
    columns = (*metrics_of(scorers), *distances_of(scorers))
    meanings = [f"- **{column.name}**: {column.meaning}" for column in columns]
    parts += ["## What the columns are", "\n".join(meanings), "![grid](grid.png)"]
    return "\n\n".join(parts) + "\n"


def _section(name: str, results: Mapping[str, Any], study: Study) -> list[str]:
    """The tables of one set of cases."""

    def of(kind: str) -> list[Row]:
        return [row for row in results[kind] if row["cases"] == name]

    metrics = metrics_of(study.scorers)
    main = [metric.name for metric in metrics if metric.main]
    details = [metric.name for metric in metrics if not metric.main]
    distances = [distance.name for distance in distances_of(study.scorers)]
    rows, along = of("conditions") + of("references"), study.trade_off.x
    parts = [
        f"## {study.titles.get(name, name)} ({rows[0]['images']})",
        table(rows, [*main, *distances]),
        table(rows, details),
    ]
    others = [column for column in (*main, *details) if column != along.metric]
    for end in ENDS:
        same = [row for row in of("differences") if row["beside"] == end]
        if same:
            parts += [
                f"Minus the {end} wiring at the same gamma, in points:",
                table(same, [*main, *details]),
            ]
        # Only where the curve covers them; a row that has main metrics may still lack details.
        equal = [row for row in of("equal_boxes") if row["beside"] == end]
        equal = [row for row in equal if any(row[column] is not None for column in others)]
        if equal:
            parts += [
                f"Minus the {end} wiring at the same share of {along.noun}, in points. It is "
                "interpolated along gamma, in each resample by itself:",
                table(equal, others),
            ]
    return parts


def findings(
    results: Mapping[str, Any], trade_off: TradeOff, titles: Mapping[str, str]
) -> list[str]:
    """What the parallel wiring changed at the largest gamma, one sentence per set of cases."""
    rows, equal = (
        [row for row in results[kind] if row["method"] == "parallel"]
        for kind in ("differences", "equal_boxes")
    )
    gamma = max(row["gamma"] for row in rows)
    twins = {(row["cases"], row["model"], row["gamma"]): row for row in equal}
    return [
        f"**{titles.get(row['cases'], row['cases'])}.** "
        + finding(row, twins[row["cases"], row["model"], gamma], trade_off)
        for row in rows
        if row["gamma"] == gamma and has_both(row, trade_off)
    ]


def both_ends(
    results: Mapping[str, Any], trade_off: TradeOff, titles: Mapping[str, str]
) -> list[str]:
    """Which further methods beat both main wirings at the same share of boxes."""
    y = trade_off.y
    beside: dict[tuple[str, str, str, float], dict[str, Interval]] = {}
    for row in results["equal_boxes"]:
        if row["method"] not in ENDS and row[y.metric] is not None:
            place = row["cases"], row["model"], row["method"], row["gamma"]
            beside.setdefault(place, {})[row["beside"]] = row[y.metric]
    sentences = []
    for name in dict.fromkeys(cases for cases, *_ in beside):
        known = {
            place: found for place, found in beside.items()
            if place[0] == name and len(found) == len(ENDS)
        }  # fmt: skip
        better = [
            f"{method} at gamma {gamma:g}"
            for (_, _, method, gamma), found in known.items()
            if min(low for _, low, _ in found.values()) > 0
        ]
        sentences.append(
            f"**{titles.get(name, name)}.** At the same share of {trade_off.x.noun}, "
            f"{len(better)} of {len(known)} further points have more of the {y.noun} than both "
            "main wirings, with both intervals above 0"
            + (f": {', '.join(better)}." if better else ".")
        )
    return sentences


def finding(row: Row, equal: Row, trade_off: TradeOff) -> str:
    """One condition's differences at the same gamma, and at the same share of boxes."""

    def told(row: Row, axis: Axis) -> str:
        estimate, low, high = percent(row[axis.metric])
        word = "more" if estimate >= 0 else axis.fewer
        return f"{abs(estimate):.1f} points {word} of the {axis.noun} ({low:+.1f} to {high:+.1f})"

    x, y = trade_off.x, trade_off.y
    text = (
        f"{row['model']}, parallel at gamma {row['gamma']:g}, beside the sequential wiring: "
        f"{told(row, y)} and {told(row, x)}."
    )
    if equal[y.metric] is not None:
        text += f" At the same share of {x.noun}: {told(equal, y)}."
    return text


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A Markdown table with one row per condition; columns without any value are left out."""
    columns = [name for name in columns if any(row.get(name) is not None for row in rows)]
    lines = [["model", "method", "gamma", *columns], ["---"] * (3 + len(columns))]
    for row in rows:
        gamma = f"{row['gamma']:g}" if "gamma" in row else ""
        cells = [_cell(row.get(name)) for name in columns]
        lines.append([row.get("model", ""), row["method"], gamma, *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Interval | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return f"{value:.2f}"
    estimate, low, high = percent(value)
    return f"{estimate:.1f} [{low:.1f}, {high:.1f}]"

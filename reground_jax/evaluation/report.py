"""What a study found: results.json, report.md, tradeoff.svg and grid.png in its folder."""

import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from reground_jax.atomic import write_json
from reground_jax.draw import comparison_grid
from reground_jax.evaluation.plot import Curve, Interval, Panel, Point, tradeoff_svg
from reground_jax.evaluation.scorers import Record
from reground_jax.evaluation.statistics import (
    STATISTICS,
    Gaussian,
    above_curve,
    bootstrap_weights,
    frechet_distance,
    interval,
)
from reground_jax.evaluation.study import Condition, Study
from reground_jax.images import save_png

GRID_ROWS = 8
MAIN = ("box", "ap50", "text")
PARTS = ("setting", "night", "style", "attribute", "unboxed", "count")
MEANINGS = {
    "box": "boxes whose crop shows their category",
    "ap50": "average precision of the detector against the boxes, at IoU 0.5",
    "text": "of what only the caption says (the next five together), how much is shown",
    "setting": "told settings that are shown",
    "night": "told nights that are shown",
    "style": "told styles that are shown",
    "attribute": "objects told to be tinted or upside down that are found so, anywhere",
    "unboxed": "objects that the caption names and no box places, found anywhere",
    "count": "categories of which exactly as many are found as told",
    "frechet": "distance of the probe's features to held-out renders (lower is better; biased by "
    "the number of images)",
}
TITLES = {
    "heldout": "Held-out layouts",
    "dropped": "COCO-Drop: the boxes of half of the categories taken away",
    "nsr1k": "NSR-1K: layouts by GPT-4",
}
COLORS = {"sequential": "#cf222e", "parallel": "#0969da"}
OTHER_COLOR, SINGLE_COLOR = "#1a7f37", "#656d76"

Row = dict[str, Any]


def reference() -> tuple[dict[str, Any], Gaussian]:
    """What is shipped of held-out renders (`heldout.py` wrote it).

    The first has "renders" and "decoded" (records of the layouts' own renders, the second after the
    autoencoder), and the probes' "accuracy" on both; the second the features of other renders.
    """
    data = files("reground_jax.evaluation").joinpath("data")
    facts = json.loads(gzip.decompress(data.joinpath("reference.json.gz").read_bytes()))
    with data.joinpath("reference.npz").open("rb") as file, np.load(file) as arrays:
        return facts, Gaussian(arrays["mean"], arrays["covariance"])


def summarise(records: Mapping[Condition, Sequence[Record]]) -> dict[str, Any]:
    """All numbers of a study, as JSON: of conditions, of their differences, and of renders.

    "differences" are from the sequential wiring at the same gamma, "equal_boxes" from it at the
    gamma, interpolated, that fills the same share of boxes. Every number but "frechet" is
    (estimate, low, high), null where nothing was asked for.
    """
    facts, features = reference()
    weights = {c.cases: bootstrap_weights(len(rows)) for c, rows in records.items()}
    values = {
        condition: {
            name: statistic(rows, weights[condition.cases])
            for name, statistic in STATISTICS.items()
        }
        for condition, rows in records.items()
    }
    return {
        "conditions": [
            _row(vars(condition), records[condition], values[condition], features)
            for condition in records
        ],
        "differences": [
            _differences(condition, {n: v - values[twin][n] for n, v in values[condition].items()})
            for condition, twin in _pairs(records)
        ],
        "equal_boxes": [
            _differences(condition, _above(values[condition], [values[c] for c in curve]))
            for condition, curve in _curves(records)
        ],
        "references": [
            _row({"cases": "heldout", "wiring": name}, rows, _values(rows), features)
            for name in ("renders", "decoded")
            for rows in [_same_images(facts[name], records)]
        ],
        "accuracy": facts["accuracy"],
    }


def _pairs(records: Iterable[Condition]) -> list[tuple[Condition, Condition]]:
    """Each parallel condition with its sequential twin, where both were measured."""
    return [
        (condition, twin)
        for condition, curve in _curves(records)
        for twin in curve
        if twin.gamma == condition.gamma
    ]


def _curves(records: Iterable[Condition]) -> list[tuple[Condition, list[Condition]]]:
    """Each parallel condition with the sequential ones of the same cases (of the first model)."""
    known = list(records)
    return [
        (c, [s for s in known if s.wiring == "sequential" and s.cases == c.cases])
        for c in known
        if c.wiring == "parallel"
    ]


def _above(
    values: Mapping[str, np.ndarray], curve: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """By how much every statistic lies above a curve over the share of boxes."""
    boxes = np.array([point["box"] for point in curve])
    return {
        name: above_curve(values["box"], value, boxes, np.array([point[name] for point in curve]))
        for name, value in values.items()
        if name != "box"
    }


def _differences(condition: Condition, values: Mapping[str, np.ndarray]) -> Row:
    return {**vars(condition), **{name: _interval(value) for name, value in values.items()}}


def _same_images(
    rows: Sequence[Record], records: Mapping[Condition, Sequence[Record]]
) -> Sequence[Record]:
    """The references of the layouts that were measured: as many, as a Frechet distance asks for."""
    counts = [len(found) for condition, found in records.items() if condition.cases == "heldout"]
    return rows[: max(counts, default=len(rows))]


def _values(rows: Sequence[Record]) -> dict[str, np.ndarray]:
    weights = bootstrap_weights(len(rows))
    return {name: statistic(rows, weights) for name, statistic in STATISTICS.items()}


def _row(
    what: Mapping[str, Any],
    rows: Sequence[Record],
    values: Mapping[str, np.ndarray],
    features: Gaussian,
) -> Row:
    numbers = {name: _interval(value) for name, value in values.items()}
    frechet = None  # of one image alone there is no covariance
    if len(rows) > 1:
        own = Gaussian.of(np.array([record["features"] for record in rows]))
        frechet = round(frechet_distance(own, features), 3)
    return {**what, "images": len(rows), **numbers, "frechet": frechet}


def _interval(values: np.ndarray) -> Interval | None:
    numbers = interval(values)
    if math.isnan(numbers[0]):
        return None
    estimate, low, high = (round(number, 5) for number in numbers)
    return estimate, low, high


def write_report(
    study: Study, records: Mapping[Condition, Sequence[Record]], command: str
) -> dict[str, Any]:
    """Writes the four files into the study's folder and returns what is in results.json."""
    results = {
        "command": command,
        "settings": study.settings.to_json(),
        **study.identity,
        **summarise(records),
    }
    write_json(study.out / "results.json", results)
    if drawn := panels(results["conditions"]):
        svg = tradeoff_svg(
            drawn,
            x_title="boxes with the right thing in them, %",
            y_title="of what only the caption says, shown, %",
        )
        (study.out / "tradeoff.svg").write_text(svg, "utf-8")
    save_png(study.out / "grid.png", grid(study, list(records)))
    (study.out / "report.md").write_text(markdown(results), "utf-8")
    return results


def grid(study: Study, conditions: Sequence[Condition]) -> Image.Image:
    """The first held-out layouts with two boxes or more, under three wirings at the last gamma."""
    main = conditions[0].model
    gamma = max(c.gamma for c in conditions)
    wirings = ("no_grounding", "sequential", "parallel")
    shown = [row for row, case in enumerate(study.cases["heldout"]) if len(case.layout.boxes) > 1][
        :GRID_ROWS
    ]
    columns = {
        wiring: study.images(Condition(main, "heldout", wiring, gamma), shown[-1] + 1)[shown]
        for wiring in wirings
    }
    layouts = [study.cases["heldout"][row].layout for row in shown]
    return comparison_grid(layouts, {name: list(images) for name, images in columns.items()})


def title(cases: str) -> str:
    """What a set of cases is called in the report."""
    return TITLES.get(cases, cases)


def panels(rows: Sequence[Row]) -> list[Panel]:
    """One per set of cases with boxes to score and captions that say more than the boxes do."""
    told = [row for row in rows if row["text"] is not None and row["box"] is not None]
    return [
        Panel(title(name), curves([row for row in told if row["cases"] == name]))
        for name in dict.fromkeys(row["cases"] for row in told)
    ]


def curves(rows: Sequence[Row]) -> list[Curve]:
    """A line per model and main wiring over gamma, and the other wirings as points."""
    main = rows[0]["model"]
    lines: dict[tuple[str, str], list[Point]] = {}
    for row in sorted(rows, key=lambda row: row["gamma"]):
        point = Point(_label(row, main), _percent(row["box"]), _percent(row["text"]))
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
    """A gamma, or the name of a wiring without a curve; none where another point says it."""
    if row["wiring"] not in COLORS:
        return row["wiring"]
    # Gamma 0 is no grounding, and all curves have the same gammas in the same order.
    return f"γ {row['gamma']:g}" if row["model"] == main and row["gamma"] > 0 else ""


def _percent(numbers: Interval) -> Interval:
    estimate, low, high = (100 * number for number in numbers)
    return estimate, low, high


def markdown(results: Mapping[str, Any]) -> str:
    """The report's text."""
    settings = results["settings"]
    parts = [
        "# Boxes and text: what gamma and the wiring do",
        f"`{results['command']}`",
        f"{settings['num_steps']} steps of {settings['solver']}, guidance "
        f"{settings['guidance_scale']:g}, {settings['dtype']}. Percentages with "
        "95 % intervals of a bootstrap over layouts; differences are paired by layout and seed.",
        *(["![trade-off](tradeoff.svg)"] if panels(results["conditions"]) else []),
        *findings(results),
        "## The probes",
        "Share of right answers on 1,000 held-out renders, as they are and after the autoencoder.",
        accuracy_table(results["accuracy"]),
    ]
    for name in dict.fromkeys(row["cases"] for row in results["conditions"]):
        parts += _section(name, results)
    meanings = [f"- **{name}**: {text}" for name, text in MEANINGS.items()]
    parts += ["## What the columns are", "\n".join(meanings), "![grid](grid.png)"]
    return "\n\n".join(parts) + "\n"


def _section(name: str, results: Mapping[str, Any]) -> list[str]:
    """The tables of one set of cases."""

    def of(kind: str) -> list[Row]:
        return [row for row in results[kind] if row["cases"] == name]

    rows = of("conditions") + of("references")
    parts = [
        f"## {title(name)} ({rows[0]['images']})",
        table(rows, (*MAIN, "frechet")),
        table(rows, PARTS),
        "Parallel minus sequential at the same gamma, in points:",
        table(of("differences"), (*MAIN, *PARTS)),
    ]
    # Where a curve reaches them.
    equal = [row for row in of("equal_boxes") if row["ap50"] is not None]
    if equal:
        parts += [
            "Parallel minus sequential at the same share of boxes, in points. The sequential "
            "wiring is interpolated along gamma, in each resample by itself:",
            table(equal, ("ap50", "text", *PARTS)),
        ]
    return parts


def findings(results: Mapping[str, Any]) -> list[str]:
    """What the parallel wiring changed at the largest gamma, a sentence per set of cases."""
    gamma = max(row["gamma"] for row in results["differences"])
    equal = {(row["cases"], row["model"], row["gamma"]): row for row in results["equal_boxes"]}
    return [
        finding(row, equal[row["cases"], row["model"], gamma])
        for row in results["differences"]
        if row["gamma"] == gamma and row["text"] is not None and row["box"] is not None
    ]


def finding(row: Row, equal: Row) -> str:
    """One condition's differences at the same gamma, and at the same share of boxes."""

    def told(value: Interval, thing: str, less: str = "less") -> str:
        estimate, low, high = _percent(value)
        word = "more" if estimate >= 0 else less
        return f"{abs(estimate):.1f} points {word} {thing} ({low:+.1f} to {high:+.1f})"

    text = (
        f"**{title(row['cases'])}.** {row['model']}, parallel at gamma "
        f"{row['gamma']:g}, beside the sequential wiring: {told(row['text'], 'of the text')} "
        f"and {told(row['box'], 'of the boxes', 'fewer')}."
    )
    if equal["text"] is not None:
        text += f" At the same share of boxes: {told(equal['text'], 'of the text')}."
    return text


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Markdown, a row per condition; columns without any number are left out."""
    columns = [name for name in columns if any(row.get(name) is not None for row in rows)]
    lines = [["model", "wiring", "gamma", *columns], ["---"] * (3 + len(columns))]
    for row in rows:
        gamma = f"{row['gamma']:g}" if "gamma" in row else ""
        cells = [_cell(row.get(name)) for name in columns]
        lines.append([row.get("model", ""), row["wiring"], gamma, *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Interval | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return f"{value:.2f}"
    estimate, low, high = _percent(value)
    return f"{estimate:.1f} [{low:.1f}, {high:.1f}]"


def accuracy_table(accuracy: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(accuracy.values())))
    lines = [["", *names], ["---"] * (1 + len(names))]
    lines += [
        [kind, *(f"{100 * values[name]:.1f} %" for name in names)]
        for kind, values in accuracy.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

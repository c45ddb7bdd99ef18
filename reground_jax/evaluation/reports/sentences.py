"""What a report says in words."""

from collections.abc import Mapping
from typing import Any

from reground_jax.basics.wording import plural
from reground_jax.evaluation.reports.figures import has_both
from reground_jax.evaluation.reports.paper import PREFERENCES, SHARES
from reground_jax.evaluation.reports.summary import Row
from reground_jax.evaluation.scorer import PERCENT, Axis, Forms, TradeOff
from reground_jax.evaluation.statistics import Interval
from reground_jax.evaluation.studies.conditions import ENDS

Names = Mapping[str, str]
TOLD = ("counting", "spatial")  # metrics that depend on a threshold


def findings(
    results: Mapping[str, Any], trade_off: TradeOff, titles: Names, forms: Forms | None = None
) -> list[str]:
    """What the parallel wiring changed at the largest gamma, one sentence per set of cases."""
    rows, equal = (
        [row for row in results[kind] if row["method"] == "parallel"]
        for kind in ("differences", "equal_boxes")
    )
    gamma = max((row["gamma"] for row in rows), default=0)
    twins = {(row["cases"], row["model"], row["gamma"]): row for row in equal}
    return [
        _heading(titles, row["cases"])
        + finding(row, twins[row["cases"], row["model"], gamma], trade_off, forms or {})
        for row in rows
        if row["gamma"] == gamma and has_both(row, trade_off)
    ]


def finding(row: Row, equal: Row, trade_off: TradeOff, forms: Forms) -> str:
    """One condition's differences at the same gamma, and at the same share of boxes."""

    def told(row: Row, axis: Axis) -> str:
        form = forms.get(axis.metric, PERCENT)
        estimate, low, high = form.scaled(row[axis.metric])
        word, digits = "more" if estimate >= 0 else axis.fewer, form.digits
        between = f"({low:+z.{digits}f} to {high:+z.{digits}f})"
        return f"{abs(estimate):.{digits}f} points {word} {axis.noun} {between}"

    x, y = trade_off.x, trade_off.y
    text = (
        f"{row['model']}, parallel at gamma {row['gamma']:g}, beside the sequential wiring: "
        f"{told(row, y)} and {told(row, x)}."
    )
    if equal[y.metric] is not None:
        text += f" At the same {x.level}: {told(equal, y)}."
    return text


def both_ends(results: Mapping[str, Any], trade_off: TradeOff, titles: Names) -> list[str]:
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
            f"{_heading(titles, name)}At the same {trade_off.x.level}, "
            f"{len(better)} of {len(known)} further points have more {y.noun} than both "
            "main wirings, with both intervals above 0"
            + (f": {', '.join(better)}." if better else ".")
        )
    return sentences


def shares(
    results: Mapping[str, Any], trade_off: TradeOff, titles: Names, paper: Names
) -> list[str]:
    """The gain and the loss as shares of the swing over gamma. paper: key of PAPER by cases."""
    sentences = []
    for row in results["shares"]:
        if row["gain"] is None or row["loss"] is None:
            continue
        gain, loss = (_percent(row[name]) for name in ("gain", "loss"))
        text = (
            f"{_heading(titles, row['cases'])}{row['model']}: of what the sequential "
            f"wiring changes from gamma {row['gamma']:g} to {row['swing_to']:g}, the parallel "
            f"wiring at gamma {row['gamma']:g} gains {gain} in {trade_off.y.level} and loses "
            f"{loss} in {trade_off.x.level}."
        )
        if known := SHARES.get(paper.get(row["cases"], "")):
            text += f" The paper says {100 * known[0]:.2f} and {100 * known[1]:.2f} %."
        sentences.append(text)
    return sentences


def preferences(results: Mapping[str, Any], titles: Names, paper: Names) -> list[str]:
    """How often and how much the parallel wiring's image is liked more, per set of cases."""
    sentences = []
    for row in results["preferences"]:
        text = (
            f"{_heading(titles, row['cases'])}{row['model']}, gamma "
            f"{row['gamma']:g}: {row['scorer']} prefers the parallel wiring's image to the "
            f"sequential one's by {_percent(row['preference'])} (mean of the sigmoid of the "
            f"difference), and in {_percent(row['wins'])} of the pairs."
        )
        if known := PREFERENCES.get(paper.get(row["cases"], "")):
            text += f" The paper says {100 * known:.2f} %, of which of the two it does not."
        sentences.append(text)
    return sentences


def _heading(titles: Names, cases: str) -> str:
    """Which set of cases a sentence is about."""
    return f"**{titles.get(cases, cases)}.** "


def _percent(numbers: Interval) -> str:
    estimate, low, high = PERCENT.scaled(numbers)
    return f"{estimate:z.1f} % [{low:z.1f}, {high:z.1f}]"


def thresholds(results: Mapping[str, Any]) -> list[str]:
    """From which score an object counts as present, where a prompt asks for any."""
    told = []
    for name, facts in results["scorers"].items():
        prefix = "" if name == "detector" else f"{name}."
        asked = (row.get(f"{prefix}{m}") for row in results["conditions"] for m in TOLD)
        if "rules" not in facts or all(value is None for value in asked):
            continue
        count = facts.get("threshold_photographs")
        why = (
            f"which gives the most right counts on {plural(count, 'photograph')} that NSR-1K's "
            "prompts were written for"
            if count
            else "not chosen on photographs that NSR-1K's prompts were written for, of which there "
            "are none or too few"
        )
        told.append(
            f"For counts and relations, an object that {name} finds is present from a score of "
            f"{facts['rules']['threshold']:g}, {why}."
        )
    return told

"""Which CLIP and which definition of AP come nearest to the paper's numbers.

ReGround's paper (arXiv 2403.13589) does not say which CLIP, detector and ground truth its scores
are of. They are chosen on the sequential wiring alone, before an image of another wiring is scored,
from everything that the stored scores allow. The whole grid is published, and the choice is frozen.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from reground_jax.basics.atomic import create
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorers.coco_ap import precisions
from reground_jax.evaluation.scorers.detections import Rules, Truth, Unasked, judge
from reground_jax.evaluation.statistics import Record
from reground_jax.readers import read_json

# The paper's scores of the sequential wiring (GLIGEN) on COCO-2017, by gamma.
CLIP = {1.0: 30.44, 0.1: 31.65}
YOLO = {1.0: 58.13, 0.1: 22.75}
WITHIN = math.log(1.1)  # a choice must come this near at every gamma
# Least areas, fractions of the image, by truth; boxes of layouts have at least 1 %.
AREAS: dict[Truth, tuple[float, ...]] = {
    "asked": (0.01, 0.02, 0.05),
    "annotated": (0.0, 0.01, 0.02, 0.05),
}
DEFAULT = {"metric": "ap50", "truth": "asked", "unasked": "ignored", "least_area": 0.01}


def calibrate(
    clip: Mapping[str, Mapping[float, float]],
    detections: Mapping[str, Mapping[float, Sequence[Record]]],
    cases: Sequence[Case],
) -> dict[str, Any]:
    """The grid and the choice, as plain JSON: "layouts", and "clip" and "ap" like `_choice`.

    clip: mean CLIP score by variant and gamma, the default variant first. detections: stored
    records of `cases` by detector and gamma, the default detector first. Both have the sequential
    wiring's scores at the gammas of CLIP and YOLO.
    """
    variants = [{"clip": name, "values": dict(values)} for name, values in clip.items()]
    cells = [
        cell
        for detector, records in detections.items()
        for cell in _cells(detector, {gamma: records[gamma] for gamma in YOLO}, cases)
    ]
    return {
        "layouts": len(cases),
        "clip": _choice(variants, CLIP, {}),
        "ap": _choice(cells, YOLO, DEFAULT),
    }


def _cells(
    detector: str, records: Mapping[float, Sequence[Record]], cases: Sequence[Case]
) -> list[dict[str, Any]]:
    """The AP of one detector by every rule."""
    pairs: list[tuple[Truth, float]] = [
        (truth, least) for truth, areas in AREAS.items() for least in areas
    ]
    once = np.ones((1, len(cases)))
    cells = []
    for (truth, least), unasked in itertools.product(pairs, get_args(Unasked)):
        rules = Rules(truth=truth, unasked=unasked, least_area=least)
        judged = judge(rules)
        by_metric = {"ap50": {}, "ap": {}}
        for gamma, stored in records.items():
            found = [judged(*pair) for pair in zip(stored, cases, strict=True)]
            each = precisions(found, once).values()
            values = np.array([by_iou[0] for by_iou in each]) * 100
            by_metric["ap50"][gamma] = float(values[:, 0].mean()) if len(values) else 0.0
            by_metric["ap"][gamma] = float(values.mean()) if len(values) else 0.0
        what = {"detector": detector, "truth": truth, "unasked": unasked, "least_area": least}
        cells += [what | {"metric": name, "values": values} for name, values in by_metric.items()]
    return cells


def _choice(
    grid: Sequence[dict[str, Any]], targets: Mapping[float, float], default: Mapping[str, Any]
) -> dict[str, Any]:
    """{"targets", "chosen", "reproduced", "grid"} with the "error" of every entry of the grid.

    The error is the sum of |log(ours / target)|, null if a value of ours is not positive. The
    least one is chosen of those entries that are `WITHIN` the targets. If there is none, the first
    entry that agrees with `default` is, and "reproduced" is false.
    """
    rows = []
    for entry in grid:
        ours = {gamma: float(entry["values"][gamma]) for gamma in targets}
        off = [
            abs(math.log(value / targets[gamma])) if value > 0 else math.inf
            for gamma, value in ours.items()
        ]
        error = sum(off) if max(off) < math.inf else None
        values = {f"{gamma:g}": round(value, 4) for gamma, value in ours.items()}
        rows.append(entry | {"values": values, "error": error, "within": max(off) <= WITHIN})
    near = sorted((row for row in rows if row["within"]), key=lambda row: row["error"])
    usual = [row for row in rows if default.items() <= row.items()]
    return {
        "targets": {f"{gamma:g}": value for gamma, value in targets.items()},
        "chosen": next(iter(near or usual), None),
        "reproduced": bool(near),
        "grid": rows,
    }


def freeze(path: str | Path, calibration: Mapping[str, Any]) -> None:
    """Writes calibration.json once. Raises ValueError if another calibration is there."""
    content = f"{json.dumps(calibration, indent=1)}\n".encode()
    if not create(Path(path), content) and Path(path).read_bytes() != content:
        raise ValueError(
            f"{path} holds another calibration: it is frozen, since scores of other wirings may "
            "have been seen; start a new study to calibrate again"
        )


def chosen_rules(path: str | Path) -> tuple[str, str, Rules]:
    """(detector, metric, rules) of a calibration. Raises ValueError if the file has none."""
    match read_json(path, "calibration"):
        case {"ap": {"chosen": {"detector": str(detector), "metric": str(metric), **cell}}}:
            names = ("truth", "unasked", "least_area")
            return detector, metric, Rules(**{name: cell[name] for name in names if name in cell})
    raise ValueError(f"{path} is not a calibration with a choice for AP: calibrate again")

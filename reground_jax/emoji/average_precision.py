"""AP50 as the published records of the built-in world have it, after PASCAL VOC 2010.

`detection_record` matches what the probes find against the objects that should be there, and
`average_precision` turns these records into a number. `evaluation.coco_ap` has COCO's AP.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from reground_jax.basics.boxes import iou
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorers.detections import Detection
from reground_jax.evaluation.statistics import Record, Weights
from reground_jax.layout_fields import Box


def hits(
    found: Sequence[Detection], wanted: Sequence[tuple[str, Box]], *, least: float = 0.5
) -> list[bool]:
    """For each detection, whether it is a true positive under PASCAL VOC's matching.

    In order of descending score, a detection is matched to the wanted object of its category with
    the largest IoU, if that is at least `least`; a second detection of the same object is a false
    positive.
    """
    free = [True] * len(wanted)
    result = [False] * len(found)
    for i in sorted(range(len(found)), key=lambda i: -found[i].score):
        same = [j for j, (category, _) in enumerate(wanted) if category == found[i].category]
        if not same:
            continue
        overlaps = iou(np.array(found[i].box), np.array([wanted[j][1] for j in same], float))
        best = int(overlaps.argmax())
        if overlaps[best] >= least and free[same[best]]:
            free[same[best]] = False
            result[i] = True
    return result


def detection_record(case: Case, detections: Sequence[Detection]) -> dict[str, Any]:
    """detections: [category, score, hit] each; objects: the number of boxes per category.

    A category with any unboxed object is left out, boxes included: that object may be anywhere, so
    detecting it is not an error, and it cannot be told apart from the boxed ones.
    """
    unboxed = case.unboxed.keys()
    wanted = [
        (thing["category"], thing["box"])
        for thing in case.facts["objects"]
        if thing["boxed"] and thing["category"] not in unboxed
    ]
    found = [d for d in detections if d.category not in unboxed]
    rows = [
        [d.category, round(d.score, 4), int(hit)]
        for d, hit in zip(found, hits(found, wanted), strict=True)
    ]
    return {"detections": rows, "objects": dict(Counter(name for name, _ in wanted))}


def average_precision(records: Sequence[Record], weights: Weights) -> Float[np.ndarray, "R"]:
    """AP50: the area under the precision envelope (PASCAL VOC 2010), averaged over categories.

    Records come from `detection_record`. Categories without objects in a resample do not
    count in that resample.
    """
    images: dict[str, list[tuple[float, int, int]]] = defaultdict(list)  # score, hit, image
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(records)))
    for index, record in enumerate(records):
        for category, score, hit in record["detections"]:
            images[category].append((score, hit, index))
        for category, count in record["objects"].items():
            counts[category][index] = count
    total, measured = np.zeros(len(weights)), np.zeros(len(weights))
    for category, count in counts.items():
        objects = weights @ count
        precision = _average_precision(images[category], objects, weights)
        total += np.where(objects > 0, precision, 0)
        measured += objects > 0
    return np.divide(total, measured, out=np.full_like(total, np.nan), where=measured > 0)


def _average_precision(
    found: Sequence[tuple[float, int, int]], objects: Float[np.ndarray, "R"], weights: Weights
) -> Float[np.ndarray, "R"]:
    """AP50 of one category. found: (score, hit, image) of each detection."""
    if not found:
        return np.zeros(len(weights))
    ranked = sorted(found, key=lambda detection: -detection[0])
    _, hit, image = (np.array(column) for column in zip(*ranked, strict=True))
    counted = weights[:, image]
    right = np.cumsum(counted * hit, axis=1)
    every = np.cumsum(counted, axis=1)
    precision = np.divide(right, every, out=np.zeros_like(right), where=every > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area = (envelope * counted * hit).sum(1)
    return np.divide(area, objects, out=np.zeros_like(area), where=objects > 0)

"""Matches what a detector finds in an image against the objects that should be there.

Any detector works: it returns `Detection`s, and `detection_record` turns them into the records that
`statistics.average_precision` reads.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from reground_jax.basics.boxes import iou
from reground_jax.evaluation.cases import Case
from reground_jax.layout_fields import Box


class Detection(NamedTuple):
    category: str
    score: float
    box: Box  # xyxy, fractions of the image


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

"""From a picture and its case to one record: what was asked for, and how much of it is there.

A record is plain JSON. Under each name of SHARES it has [shown, asked for]; besides, what average
precision and the Frechet distance need. `statistics.py` makes numbers of many records.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from reground_jax.evaluation.boxes import area, hits
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.probes import Probes, Scene
from reground_jax.layout import Box

Record = dict[str, Any]
# (images, their cases) -> one record per image. A scorer of another kind, such as CLIP's, is one
# more of these.
Scorer = Callable[[UInt8[np.ndarray, "B S S 3"], Sequence[Case]], list[Record]]

SMALLEST = 16  # pixels, geometric mean of a box's sides: below, the probe was not tested
PLAIN_STYLE = "color"  # what captions do not tell
SHARES = ("box", "setting", "night", "style", "attribute", "unboxed", "count")
TEXT = ("setting", "night", "style", "attribute", "unboxed")  # what only the caption says


def probe_scorer(probes: Probes) -> Scorer:
    """The scorer of the emoji world.

    box        boxes of at least SMALLEST pixels whose crop shows their category
    setting    told and shown; likewise night, and style unless it is PLAIN_STYLE
    attribute  objects told to have a tint or to stand upside down, that are found so, anywhere
    unboxed    objects that the caption names and that have no box, found anywhere
    count      categories of which exactly as many are found as the picture is to show
    """

    def score(images: UInt8[np.ndarray, "B S S 3"], cases: Sequence[Case]) -> list[Record]:
        scenes = probes.scenes(images)
        boxes = [large_boxes(case, images.shape[1]) for case in cases]
        found = [present(scene, probes.threshold) for scene in scenes]
        # All crops at once: those of the layouts' boxes, then those of the detections.
        places = [(i, box) for group in (boxes, found) for i in range(len(cases))
                  for _, box in group[i]]  # fmt: skip
        seen = iter(probes.objects(images, [i for i, _ in places], [box for _, box in places]))
        in_boxes = [[next(seen)[0] for _ in group] for group in boxes]
        attributes = [[next(seen)[1] for _ in group] for group in found]
        return [
            record(case, scene, boxes[i], in_boxes[i], found[i], attributes[i])
            for i, (case, scene) in enumerate(zip(cases, scenes, strict=True))
        ]

    return score


def large_boxes(case: Case, size: int) -> list[tuple[str, Box]]:
    """Category and box of each object that has a box which is not too small."""
    return [
        (thing["category"], thing["box"])
        for thing in case.facts["objects"]
        if thing["boxed"] and size * math.sqrt(area(thing["box"])) >= SMALLEST
    ]


def present(scene: Scene, threshold: float) -> list[tuple[str, Box]]:
    """Category and place of what is in the image beyond doubt."""
    return [(d.category, d.box) for d in scene.detections if d.score >= threshold]


def record(
    case: Case,
    scene: Scene,
    boxes: Sequence[tuple[str, Box]],
    in_boxes: Sequence[str],
    found: Sequence[tuple[str, Box]],
    attributes: Sequence[str | None],
) -> Record:
    """Of one image. in_boxes: categories seen in `boxes`; attributes: those of `found`."""
    facts = case.facts
    night = facts["time"] == "night"
    styled = facts["style"] not in (None, PLAIN_STYLE)
    right = sum(category == seen for (category, _), seen in zip(boxes, in_boxes, strict=True))
    things = Counter(category for category, _ in found)
    looks = Counter(
        (category, attribute) for (category, _), attribute in zip(found, attributes, strict=True)
    )
    asked_looks = Counter(
        (thing["category"], thing["attribute"])
        for thing in facts["objects"]
        if thing["attribute"] is not None
    )
    unboxed = Counter(t["category"] for t in facts["objects"] if not t["boxed"])
    exact = sum(things[category] == count for category, count in case.counts.items())
    return {
        "id": case.layout.id,
        "box": [right, len(boxes)],
        "setting": shown(facts["setting_told"], scene.setting == facts["setting"]),
        "night": shown(night, scene.time == "night"),
        "style": shown(styled, scene.style == facts["style"]),
        "attribute": [(looks & asked_looks).total(), asked_looks.total()],
        "unboxed": [(things & unboxed).total(), unboxed.total()],
        "count": [exact, len(case.counts)],
        **detection_record(case, scene, set(unboxed)),
        "features": [round(float(value), 4) for value in scene.features],
    }


def shown(asked: bool, there: bool) -> list[int]:
    return [int(asked and there), int(asked)]


def detection_record(case: Case, scene: Scene, unboxed: set[str]) -> Record:
    """detections: [category, score, hit]; objects: boxes by category.

    Categories of which a thing has no box are left out, with their boxes: that thing may be
    anywhere, so finding it is no mistake, and which detection is which cannot be told.
    """
    wanted = [
        (t["category"], t["box"])
        for t in case.facts["objects"]
        if t["boxed"] and t["category"] not in unboxed
    ]
    found = [d for d in scene.detections if d.category not in unboxed]
    detections = [
        [d.category, round(d.score, 4), int(hit)]
        for d, hit in zip(found, hits(found, wanted), strict=True)
    ]
    return {"detections": detections, "objects": dict(Counter(name for name, _ in wanted))}

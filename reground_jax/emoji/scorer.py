"""The scorer of the emoji world: how much of what a case requests the probes find in its image.

Most fields of a record are [shown, requested]; the others are for average precision and the Frechet
distance.
"""

import gzip
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import UInt8

from reground_jax.basics.boxes import area
from reground_jax.emoji.average_precision import average_precision, detection_record
from reground_jax.emoji.probes import Probes, Scene
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorer import Axis, Distance, Metric, Scorer, TradeOff
from reground_jax.evaluation.statistics import Gaussian, Record, frechet_distance, share
from reground_jax.layout_fields import Box

RULES = 1  # incremented whenever `record` changes
SMALLEST = 16  # minimum geometric mean of a box's sides, pixels: the probe is untested below it
PLAIN_STYLE = "color"  # the style that captions do not mention
TEXT = ("setting", "night", "style", "attribute", "unboxed")  # what only the caption says

METRICS = (
    Metric("box", "boxes whose crop shows their category", share("box"), main=True),
    Metric(
        "ap50", "average precision of the detector against the boxes, at IoU 0.5",
        average_precision, main=True,
    ),
    Metric(
        "text", "of what only the caption says (the next five together), how much is shown",
        share(*TEXT), main=True,
    ),
    Metric("setting", "told settings that are shown", share("setting")),
    Metric("night", "told nights that are shown", share("night")),
    Metric("style", "told styles that are shown", share("style")),
    Metric(
        "attribute", "objects told to be tinted or upside down that are found so, anywhere",
        share("attribute"),
    ),
    Metric(
        "unboxed", "objects that the caption names and no box places, found anywhere",
        share("unboxed"),
    ),
    Metric("count", "categories of which exactly as many are found as told", share("count")),
)  # fmt: skip
TRADE_OFF = TradeOff(
    x=Axis(
        "box", "boxes with the right thing in them, %", "of the boxes", "fewer", "share of boxes"
    ),
    y=Axis("text", "of what only the caption says, shown, %", "of the text", level="share of text"),
)


def emoji_scorer(probes: Probes) -> Scorer:
    """The scorer that uses these probes, with the shipped reference records and accuracy."""
    known, features = reference()
    accuracy = known["accuracy"]
    return Scorer(
        name="probes",
        version=f"{RULES} {probes.checksum}",
        score=probe_score(probes),
        metrics=METRICS,
        distances=(
            Distance(
                "frechet",
                "distance of the probe's features to held-out renders (lower is better; biased by "
                "the number of images)",
                feature_distance(features),
            ),
        ),
        references={"heldout": {name: known[name] for name in ("renders", "decoded")}},
        facts={"accuracy": accuracy},
        about="## The probes\n\nShare of right answers on 1,000 held-out renders, as they are and "
        f"after the autoencoder.\n\n{accuracy_table(accuracy)}",
    )


def reference() -> tuple[dict[str, Any], Gaussian]:
    """The shipped reference data from held-out renders (written by `heldout.py`).

    The first value has "renders" and "decoded" (records of the layouts' own renders, before and
    after the autoencoder), and the probes' "accuracy" on both; the second is a Gaussian fit to the
    features of other renders.
    """
    data = files("reground_jax.emoji").joinpath("data")
    facts = json.loads(gzip.decompress(data.joinpath("reference.json.gz").read_bytes()))
    with data.joinpath("reference.npz").open("rb") as file, np.load(file) as arrays:
        return facts, Gaussian(arrays["mean"], arrays["covariance"])


def feature_distance(features: Gaussian) -> Callable[[Sequence[Record]], float | None]:
    """The Frechet distance of the records' features to `features`; None for under two images."""

    def measure(records: Sequence[Record]) -> float | None:
        if len(records) < 2:
            return None
        own = Gaussian.of(np.array([record["features"] for record in records]))
        return frechet_distance(features, own)  # the reference is rounded: not its root

    return measure


def accuracy_table(accuracy: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table with one row per kind of image."""
    names = list(next(iter(accuracy.values())))
    lines = [["", *names], ["---"] * (1 + len(names))]
    lines += [
        [kind, *(f"{100 * values[name]:.1f} %" for name in names)]
        for kind, values in accuracy.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def probe_score(
    probes: Probes,
) -> Callable[[UInt8[np.ndarray, "B S S 3"], Sequence[Case]], list[Record]]:
    """A function (images, their cases) -> one record per image."""

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
    """Category and box of each object whose box is at least SMALLEST pixels."""
    return [
        (thing["category"], thing["box"])
        for thing in case.facts["objects"]
        if thing["boxed"] and size * math.sqrt(area(thing["box"])) >= SMALLEST
    ]


def present(scene: Scene, threshold: float) -> list[tuple[str, Box]]:
    """Category and box of each detection that reaches `threshold`."""
    return [(d.category, d.box) for d in scene.detections if d.score >= threshold]


def record(
    case: Case,
    scene: Scene,
    boxes: Sequence[tuple[str, Box]],
    in_boxes: Sequence[str],
    found: Sequence[tuple[str, Box]],
    attributes: Sequence[str | None],
) -> Record:
    """One image's record. in_boxes: categories seen in `boxes`; attributes: those of `found`."""
    facts = case.facts
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
    exact = sum(things[category] == count for category, count in case.counts.items())
    return {
        "id": case.layout.id,
        "box": [right, len(boxes)],
        "setting": shown(facts["setting_told"], scene.setting == facts["setting"]),
        "night": shown(facts["time"] == "night", scene.time == "night"),
        "style": shown(styled, scene.style == facts["style"]),
        "attribute": [(looks & asked_looks).total(), asked_looks.total()],
        "unboxed": [(things & case.unboxed).total(), case.unboxed.total()],
        "count": [exact, len(case.counts)],
        **detection_record(case, scene.detections),
        "features": [round(float(value), 4) for value in scene.features],
    }


def shown(asked: bool, there: bool) -> list[int]:
    return [int(asked and there), int(asked)]

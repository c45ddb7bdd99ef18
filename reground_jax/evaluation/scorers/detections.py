"""What detectors find: one stored record for all of them, and the rules that judge it.

A record holds the raw detections of an image, so that every rule can be changed without detecting
again: what counts as ground truth, and from which score an object is present.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from reground_jax.basics.boxes import area
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorer import Metric, Scorer
from reground_jax.evaluation.scorers import nsr1k
from reground_jax.evaluation.scorers.coco_ap import IOUS, average_precision, bits, match
from reground_jax.evaluation.scorers.coco_ap import MOST as PER_CATEGORY
from reground_jax.evaluation.statistics import Record, share
from reground_jax.layout_fields import Box

FLOOR = 0.01  # least score that is stored
MOST = 100  # detections per image that are stored, the best ones

Truth = Literal["asked", "annotated"]
Unasked = Literal["ignored", "wrong"]


class Detection(NamedTuple):
    category: str
    score: float
    box: Box  # xyxy, fractions of the image


def stored(case: Case, found: Sequence[Detection]) -> Record:
    """One image's record: "id", and "detections" as [category, score, [x0, y0, x1, y1]].

    Scores and boxes have float32's precision; boxes are clipped to the image. The MOST best of at
    least FLOOR, by descending score, then by x0, y0, so that equal scores have a fixed order.
    """
    rows = [
        [d.category, _float32(d.score), [_float32(min(max(v, 0), 1)) for v in d.box]]
        for d in found
        if d.score >= FLOOR
    ]
    rows.sort(key=lambda row: (-row[1], row[2], row[0]))
    return {"id": case.layout.id, "detections": rows[:MOST]}


def _float32(value: float) -> float:
    """The shortest decimal that float32 cannot tell from the value."""
    return float(str(np.float32(value)))


@dataclass(frozen=True)
class Rules:
    """How records are judged.

    truth       the objects to be found: those with a box in the layout ("asked"), or all that are
                annotated inside the image
    unasked     categories that the facts name, but of which no object is to be found: their
                detections are "ignored", as such an object may be anywhere, or "wrong"
    least_area  fraction of the image; smaller objects, and smaller detections without an object,
                are ignored. Only for cases whose boxes were filtered by area; if boxes are the
                truth, at least the filter's
    threshold   score from which a detection counts as a present object (counting, spatial)
    """

    truth: Truth = "asked"
    unasked: Unasked = "ignored"
    least_area: float = 0.0
    threshold: float = 0.5


RULES = Rules()

METRICS = (
    Metric(
        "ap50", "COCO's average precision of the detector against the boxes, at IoU 0.5",
        average_precision([0]), main=True,
    ),
    Metric("ap", "the same, averaged over IoU 0.5 to 0.95", average_precision(range(len(IOUS)))),
    Metric(
        "counting", "counts of the prompt that are met, by LayoutGPT's rule, in which a comparison "
        "is worth 1 of 2", share("counting"), main=True,
    ),
    Metric("counting_clean", "the same, a comparison being worth 1 of 1", share("counting_clean")),
    Metric(
        "spatial", "pairs of objects of the prompt that stand as told", share("spatial"), main=True
    ),
)  # fmt: skip

Find = Callable[[UInt8[np.ndarray, "B H W 3"], Sequence[Case]], list[list[Detection]]]


def detection_scorer(
    find: Find, *, name: str, version: str, rules: Rules, facts: Mapping[str, Any], about: str = ""
) -> Scorer:
    """The scorer of a detector. find: (images, their cases) -> the detections in each image.

    Its metrics are named as in METRICS if it is called "detector", and otherwise "NAME.ap50".
    """

    def score(images: UInt8[np.ndarray, "B H W 3"], cases: Sequence[Case]) -> list[Record]:
        return [stored(*pair) for pair in zip(cases, find(images, cases), strict=True)]

    prefix = "" if name == "detector" else f"{name}."
    return Scorer(
        name=name,
        version=version,
        score=score,
        judge=judge(rules),
        metrics=tuple(
            Metric(prefix + m.name, m.meaning, m.statistic, m.main) for m in METRICS
        ),
        tuned=with_best_threshold,
        facts={**facts, "floor": FLOOR, "rules": asdict(rules)},
        about=about,
    )  # fmt: skip


def with_rules(scorer: Scorer, rules: Rules) -> Scorer:
    """The scorer of a detector under other rules."""
    return replace(scorer, judge=judge(rules), facts={**scorer.facts, "rules": asdict(rules)})


def with_best_threshold(scorer: Scorer, records: Sequence[Record], cases: Sequence[Case]) -> Scorer:
    """The scorer of a detector with the `best_threshold` of these records.

    Unchanged if none has a detection, as of results made elsewhere without the photographs.
    """
    if not any(record["detections"] for record in records):
        return scorer
    rules = Rules(**scorer.facts["rules"])
    made = with_rules(scorer, replace(rules, threshold=best_threshold(records, cases)))
    return replace(made, facts={**made.facts, "threshold_photographs": len(cases)})


def judge(rules: Rules) -> Callable[[Record, Case], Record]:
    """A function (stored record, its case) -> the fields that METRICS read."""

    def judged(record: Record, case: Case) -> Record:
        return {"id": record["id"], **_matched(record, case, rules), **_told(record, case, rules)}

    return judged


def _matched(record: Record, case: Case, rules: Rules) -> Record:
    """ "found" and "objects", as `coco_ap.precisions` reads them."""
    facts = case.facts
    outside = facts.get("outside", ())  # categories that no detector knows
    things = [
        (thing["category"], thing["box"])
        for thing in facts["objects"]
        if thing["category"] not in outside and (thing["boxed"] or rules.truth == "annotated")
        if area(thing["box"]) > 0  # NSR-1K has empty ones, which nothing can find
    ]
    asked = {category for category, _ in things}
    skipped = set(outside)
    if rules.unasked == "ignored":
        skipped |= {*case.counts, *facts.get("ignored", ())} - asked
    filtered = facts.get("least_area", 0.0)
    own = filtered if rules.truth == "asked" else 0.0
    least = max(own, rules.least_area) if filtered else 0.0
    found: list[list[Any]] = []
    for name in dict.fromkeys(category for category, _, _ in record["detections"]):
        if name in skipped:
            continue
        mine = [row for row in record["detections"] if row[0] == name][:PER_CATEGORY]
        matches = match(
            np.array([box for _, _, box in mine]),
            np.array([box for category, box in things if category == name]).reshape(-1, 4),
            area_range=(least, np.inf),
        )
        found += [[name, row[1], *pair] for row, pair in zip(mine, bits(matches), strict=True)]
    objects = Counter(category for category, box in things if area(box) >= least)
    return {"found": found, "objects": dict(objects)}


def _told(record: Record, case: Case, rules: Rules) -> Record:
    """LayoutGPT's answers, [right, of]; [0, 0] where the prompt does not ask."""
    facts = case.facts
    boxes: dict[str, list[Box]] = {}
    for category, score, box in record["detections"]:
        if score >= rules.threshold:
            boxes.setdefault(category, []).append(box)
    answers = {"counting": (0, 0), "counting_clean": (0, 0), "spatial": (0, 0)}
    if told := [(category, count) for category, count in facts.get("told_counts", ())]:
        counts = {category: len(found) for category, found in boxes.items()}
        comparison = facts["comparison"]
        answers["counting"] = nsr1k.counting(told, counts, comparison=comparison)
        answers["counting_clean"] = nsr1k.counting_clean(told, counts, comparison=comparison)
    if relation := facts.get("relation"):
        first, how, second = relation
        right = nsr1k.spatial(how, boxes.get(first, []), boxes.get(second, []))
        answers["spatial"] = (int(right), 1)
    return {name: list(answer) for name, answer in answers.items()}


def best_threshold(records: Sequence[Record], cases: Sequence[Case]) -> float:
    """The threshold of .05, .1 .. .95 with the most right counts, the lowest of several.

    records: stored ones of real photographs of the cases, so that no generator takes part.
    """
    pairs = list(zip(records, cases, strict=True))

    def right(threshold: float) -> int:
        rules = Rules(threshold=threshold)
        return sum(_told(record, case, rules)["counting"][0] for record, case in pairs)

    return max((step / 20 for step in range(1, 20)), key=right)

"""COCO's AP against pycocotools and faster-coco-eval on random data, and what it must not see."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from reground_jax.evaluation.scorers.coco_ap import IOUS, average_precision, bits, match
from reground_jax.evaluation.statistics import bootstrap_weights

CATEGORIES = (1, 2, 3)
IMAGES = 12
MEDIUM = (32.0**2, 96.0**2)


def random_set(seed: int) -> tuple[list[dict], list[dict]]:
    """Annotations with crowds, and detections near them, no two with the same score."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(1, IMAGES + 1):
        for category in rng.choice(CATEGORIES, rng.integers(0, 5)).tolist():
            box = [*(rng.random(2) * 300), *(20 + rng.random(2) * 120)]
            crowd = int(rng.random() < 0.15)
            annotations.append(thing(len(annotations) + 1, image, category, box, iscrowd=crowd))
            for _ in range(rng.integers(0, 4)):
                near = np.array(box) + rng.normal(0, 8, 4)
                near[2:] = near[2:].clip(5)
                other = int(rng.choice(CATEGORIES)) if rng.random() < 0.2 else category
                detections.append(thing(0, image, other, near.tolist(), score=rng.random()))
    return annotations, detections


def thing(number: int, image: int, category: int, box: list[float], **more: Any) -> dict:
    area = box[2] * box[3]
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": box, "area": area,
    } | more  # fmt: skip


def pycocotools_ap(annotations, detections, images, kind: str, area_range=(0, 1e10)) -> list[float]:
    """[AP, AP50] of COCOeval, or of faster-coco-eval's."""
    if kind == "pycocotools":
        coco = pytest.importorskip("pycocotools.coco")
        evaluation = pytest.importorskip("pycocotools.cocoeval").COCOeval
    else:
        coco = pytest.importorskip("faster_coco_eval")
        evaluation = coco.COCOeval_faster
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i, "width": 500, "height": 500} for i in images],
            "categories": [{"id": i, "name": str(i)} for i in CATEGORIES],
            "annotations": annotations,
        }
        truth.createIndex()
        checked = evaluation(truth, truth.loadRes([dict(d) for d in detections]), "bbox")
        checked.params.areaRng, checked.params.areaRngLbl = [list(area_range)], ["all"]
        checked.params.maxDets = [100]
        checked.evaluate()
        checked.accumulate()
    precision = checked.eval["precision"]  # IoU, recall, category, area, detections
    known = precision[:, :, precision[0, 0, :, 0, 0] > -1]
    return [known.mean(), known[0].mean()]


def records(annotations, detections, area_range=(0, 1e10)) -> list[dict]:
    result = []
    for image in range(1, IMAGES + 1):
        found, objects = [], {}
        for category in CATEGORIES:
            mine = [d for d in detections if (d["image_id"], d["category_id"]) == (image, category)]
            mine.sort(key=lambda d: -d["score"])
            real = [
                a for a in annotations if (a["image_id"], a["category_id"]) == (image, category)
            ]
            crowd = np.array([a["iscrowd"] for a in real], bool)
            areas = np.array([a["area"] for a in real], float)
            matches = match(corners(mine), corners(real), crowd=crowd, area_range=area_range)
            pairs = zip(mine, bits(matches), strict=True)
            found += [[str(category), d["score"], *pair] for d, pair in pairs]
            inside = (areas >= area_range[0]) & (areas <= area_range[1])
            objects[str(category)] = int((~crowd & inside).sum())
        result.append({"found": found, "objects": objects})
    return result


def of(things: list[dict], image: int, category: int) -> list[dict]:
    return [t for t in things if (t["image_id"], t["category_id"]) == (image, category)]


def corners(things: list[dict]) -> np.ndarray:
    boxes = np.array([t["bbox"] for t in things]).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def ours(found: list[dict], weights: np.ndarray) -> np.ndarray:
    return np.array([average_precision(levels)(found, weights) for levels in (range(10), (0,))])


@pytest.mark.parametrize("kind", ["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("area_range", [(0, 1e10), MEDIUM], ids=["all", "medium"])
def test_random_sets_have_the_ap_of_other_programs(kind, area_range):
    for seed in range(8):
        annotations, detections = random_set(seed)
        theirs = pycocotools_ap(annotations, detections, range(1, IMAGES + 1), kind, area_range)
        mine = ours(records(annotations, detections, area_range), np.ones((1, IMAGES)))[:, 0]
        np.testing.assert_allclose(mine, theirs, atol=1e-9, rtol=0)


def test_weights_are_images_that_are_really_repeated():
    annotations, detections = random_set(1)
    weights = bootstrap_weights(IMAGES, resamples=6, seed=3)
    mine = ours(records(annotations, detections), weights)
    for row, times in enumerate(weights.astype(int)):
        copies = [(image + 1, copy) for image, n in enumerate(times) for copy in range(n)]
        truth, found = [], []
        for number, (image, _) in enumerate(copies, 1):
            truth += [a | {"image_id": number} for a in annotations if a["image_id"] == image]
            found += [d | {"image_id": number} for d in detections if d["image_id"] == image]
        truth = [a | {"id": i} for i, a in enumerate(truth, 1)]
        theirs = pycocotools_ap(truth, found, range(1, len(copies) + 1), "pycocotools")
        np.testing.assert_allclose(mine[:, row], theirs, atol=1e-9, rtol=0)


def test_resamples_are_the_same_in_groups_of_any_size(monkeypatch):
    found = records(*random_set(2))
    weights = bootstrap_weights(IMAGES, resamples=30)
    whole = ours(found, weights)
    monkeypatch.setattr("reground_jax.evaluation.scorers.coco_ap.GROUP", 7)
    np.testing.assert_array_equal(ours(found, weights), whole)


def test_an_increasing_map_of_all_scores_changes_nothing():
    found = records(*random_set(4))
    weights = bootstrap_weights(IMAGES, resamples=20)
    before = ours(found, weights)
    for record in found:
        record["found"] = [[c, score**3 / 7, *rest] for c, score, *rest in record["found"]]
    np.testing.assert_array_equal(ours(found, weights), before)


def test_categories_without_objects_have_no_ap_and_those_without_detections_have_0():
    box = np.array([[0.1, 0.1, 0.5, 0.5]])
    hit = [list(pair) for pair in bits(match(box, box))]
    assert hit == [[(1 << len(IOUS)) - 1, 0]]
    found = [
        {"found": [["cat", 0.9, *hit[0]], ["dog", 0.8, 0, 0]], "objects": {"cat": 1}},
        {"found": [], "objects": {"bus": 1}},
    ]
    weights = np.array([[1, 1], [2, 0], [0, 2], [0, 0]], float)
    np.testing.assert_allclose(average_precision([0])(found, weights), [0.5, 1, 0, np.nan])

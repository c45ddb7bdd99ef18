"""AP, spatial and counting rules and crops against other people's code, by its stored answers."""

import json
from typing import Any

import numpy as np
import pytest

from reground_jax.evaluation.scorers.coco_ap import average_precision, bits, match, precisions
from reground_jax.evaluation.scorers.nsr1k import counting, relation_of, spatial
from reground_jax.readers.annotated import MIN_AREA, crop_box, largest
from reground_jax.readers.pixels import fractions
from tests.fixtures import fixtures

FOLDER = fixtures() / "coco_ap"
CASES = json.loads((FOLDER / "cases.json").read_text())
RULES = json.loads((FOLDER / "rules.json").read_text())
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def corners(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


def record(case: dict[str, Any], image: int, area_range: tuple[float, float]) -> dict[str, Any]:
    """One image's matches, with COCO's numbers of categories as text."""
    found, objects = [], {}
    for category in case["truth"]["categories"]:
        things = [a for a in case["truth"]["annotations"] if a[:2] == [image, category]]
        mine = [d for d in case["detections"] if d[:2] == [image, category]]
        mine = sorted(mine, key=lambda d: -d[3])[:100]
        crowd = np.array([thing[4] for thing in things], bool)
        areas = np.array([thing[3] for thing in things], float)
        matches = match(
            np.reshape([corners(d[2]) for d in mine], (-1, 4)).astype(float),
            np.reshape([corners(thing[2]) for thing in things], (-1, 4)).astype(float),
            crowd=crowd, areas=areas, area_range=area_range,
        )  # fmt: skip
        pairs = zip(mine, bits(matches), strict=True)
        found += [[str(category), d[3], *rest] for d, rest in pairs]
        low, high = area_range
        objects[str(category)] = int((~crowd & (areas >= low) & (areas <= high)).sum())
    return {"found": found, "objects": objects}


def records(case: dict[str, Any], area_range: tuple[float, float] = (0, 1e10)) -> list[dict]:
    return [
        record(case, i, area_range) for i in sorted(image[0] for image in case["truth"]["images"])
    ]


def ap(found: list[dict], weights: np.ndarray, levels: Any = range(10)) -> np.ndarray:
    return np.nan_to_num(average_precision(levels)(found, weights), nan=-1)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_average_precision_is_pycocotools(case):
    once = np.ones((1, len(case["truth"]["images"])))
    expected, found = case["expected"], records(case)
    for name, levels in {"AP": range(10), "AP50": (0,), "AP75": (5,)}.items():
        np.testing.assert_allclose(ap(found, once, levels), expected[name], atol=1e-9, rtol=0)
    for name, area_range in AREAS.items():
        mine = ap(records(case, area_range), once)
        np.testing.assert_allclose(mine, expected[f"AP_{name}"], atol=1e-9, rtol=0)
    each = precisions(found, once)
    for name, values in case["per_category"].items():
        if values["AP"] is None:
            assert name not in each
        else:
            np.testing.assert_allclose(each[name].mean(), values["AP"], atol=1e-9, rtol=0)
            np.testing.assert_allclose(each[name][0, 0], values["AP50"], atol=1e-9, rtol=0)


RESAMPLED = [case for case in CASES if case.get("resamples")]


@pytest.mark.parametrize("case", RESAMPLED, ids=[case["name"] for case in RESAMPLED])
def test_weights_give_what_pycocotools_says_of_repeated_images(case):
    resamples = case["resamples"]
    weights = np.array([resample["times"] for resample in resamples], float)
    for name, levels in {"AP": range(10), "AP50": (0,)}.items():
        expected = [resample[name] for resample in resamples]
        np.testing.assert_allclose(ap(records(case), weights, levels), expected, atol=1e-9, rtol=0)


def test_spatial_relations_are_layoutgpts():
    for case in RULES["spatial"]:
        pairs = [relation_of(a, b) for a in case["obj1"] for b in case["obj2"]]
        assert pairs == case["pairs"], case
        assert spatial(case["relation"], case["obj1"], case["obj2"]) == case["right"], case


def test_counts_are_layoutgpts():
    total = np.zeros(2)
    for image in RULES["counting"]["images"]:
        comparison = image["sub-type"] == "comparison"
        told = [(name, count) for name, count in image["num_object"]]
        right, of = counting(told, image["found"], comparison=comparison)
        assert [right, of] == [image["right"], image["of"]], image
        total += right, of
    assert total[0] / total[1] == pytest.approx(RULES["counting"]["accuracy"], abs=1e-9)


def test_boxes_are_cropped_as_gligen_does():
    """GLIGEN crops at whole pixels of 512."""
    for case in RULES["crop"]:
        size = (case["width"], case["height"])
        box = crop_box(fractions(case["bbox"], size), size)
        assert bool(largest([box], 1)) == case["kept"], case
        if case["kept"]:
            np.testing.assert_allclose(box, case["square"], atol=1 / 512)
    assert MIN_AREA == 0.01

"""Stored detections, the rules that judge them, and the calibration of these rules."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from reground_jax.emoji.cases import heldout_cases
from reground_jax.emoji.detector import probe_detector
from reground_jax.emoji.probes import Probes, Scene
from reground_jax.evaluation.cases import Case, with_half_the_boxes
from reground_jax.evaluation.data_sets.files import coco_set, nsr1k_set
from reground_jax.evaluation.scorers.detections import (
    METRICS,
    Detection,
    Rules,
    best_threshold,
    detection_scorer,
    judge,
    stored,
)
from reground_jax.evaluation.statistics import bootstrap_weights
from reground_jax.evaluation.studies.calibration import CLIP, YOLO, calibrate, chosen_rules, freeze
from reground_jax.layout import Layout
from tests.data_sets import write_coco, write_nsr1k

LEFT, RIGHT, LOW = (0.0, 0.0, 0.3, 0.3), (0.6, 0.0, 1.0, 0.4), (0.3, 0.6, 0.7, 1.0)


def thing(category: str, box=LEFT, boxed: bool = True) -> dict:
    return {"category": category, "attribute": None, "box": box, "boxed": boxed}


def case(*objects: dict, **facts) -> Case:
    boxed = [t for t in objects if t["boxed"]]
    layout = Layout("", [f"a {t['category']}" for t in boxed], [t["box"] for t in boxed], id="x")
    return Case(layout, facts | {"objects": list(objects)})


def answers(cases: list[Case], score=0.9) -> list[dict]:
    """What a perfect detector stores."""
    return [
        stored(c, [Detection(t["category"], score, t["box"]) for t in c.facts["objects"]])
        for c in cases
    ]


def values(cases, records, rules=Rules(), resamples=5) -> dict[str, np.ndarray]:  # noqa: B008
    judged = [judge(rules)(record, c) for record, c in zip(records, cases, strict=True)]
    weights = bootstrap_weights(len(cases), resamples=resamples)
    return {metric.name: metric.statistic(judged, weights) for metric in METRICS}


# ---- the record


def test_a_record_has_the_100_best_in_a_fixed_order_inside_the_image():
    found = [
        Detection("dog", 0.5, (0.2, 0.1, 0.9, 0.9)),
        Detection("cat", 0.5, (0.1, 0.1, 0.9, 0.9)),
        Detection("cat", 0.9, (-0.5, 0.5, 1.5, 0.75)),
        Detection("cat", 0.0099, LEFT),
        Detection("cat", 0.01, LEFT),
    ]
    record = stored(case(), found)
    assert record["detections"] == [
        ["cat", 0.9, [0, 0.5, 1, 0.75]],
        ["cat", 0.5, [0.1, 0.1, 0.9, 0.9]],
        ["dog", 0.5, [0.2, 0.1, 0.9, 0.9]],
        ["cat", 0.01, [0, 0, 0.3, 0.3]],
    ]
    assert stored(case(), found[::-1]) == record == json.loads(json.dumps(record))
    many = [Detection("cat", 0.5 + i / 1000, LEFT) for i in range(150)]
    scores = [score for _, score, _ in stored(case(), many)["detections"]]
    assert len(scores) == 100 and min(scores) == 0.55


def test_scores_keep_float32_and_so_their_order():
    scores = np.sort(np.random.default_rng(0).uniform(0.1, 1, 50).astype(np.float32))[::-1]
    record = stored(case(), [Detection("cat", float(score), LEFT) for score in scores])
    kept = [score for _, score, _ in record["detections"]]
    np.testing.assert_array_equal(np.array(kept, np.float32), scores)


# ---- rules


def objects_and_found(case_: Case, rules: Rules, *found: Detection) -> tuple[dict, list]:
    judged = judge(rules)(stored(case_, found), case_)
    return judged["objects"], judged["found"]


def test_categories_that_are_named_but_not_asked_for_are_ignored_or_wrong():
    asked = case(thing("cat"), thing("dog", RIGHT, boxed=False), ignored=["car"])
    found = [Detection(name, 0.9, LEFT) for name in ("cat", "dog", "car", "bus")]
    objects, kept = objects_and_found(asked, Rules(), *found)
    assert objects == {"cat": 1} and sorted(row[0] for row in kept) == ["bus", "cat"]
    objects, kept = objects_and_found(asked, Rules(unasked="wrong"), *found)
    assert objects == {"cat": 1} and len(kept) == 4
    objects, kept = objects_and_found(asked, Rules(truth="annotated"), *found)
    assert objects == {"cat": 1, "dog": 1} and sorted(r[0] for r in kept) == ["bus", "cat", "dog"]


def test_small_objects_and_detections_are_ignored_where_boxes_were_filtered():
    small = (0.0, 0.0, 0.1, 0.15)  # 1.5 %
    tiny = (0.5, 0.5, 0.55, 0.55)
    found = [Detection("cat", 0.9, tiny), Detection("cat", 0.8, small)]
    plain, filtered = case(thing("cat", small)), case(thing("cat", small), least_area=0.01)
    every = 1023
    for asked, rules, objects, flags in (
        (plain, Rules(least_area=0.02), {"cat": 1}, [[0, 0], [every, 0]]),
        (filtered, Rules(), {"cat": 1}, [[0, every], [every, 0]]),
        (filtered, Rules(least_area=0.02), {}, [[0, every], [0, every]]),
        (filtered, Rules(truth="annotated"), {"cat": 1}, [[0, 0], [every, 0]]),
    ):
        made, kept = objects_and_found(asked, rules, *found)
        assert made == objects and [row[2:] for row in kept] == flags


def test_objects_that_nothing_can_find_have_no_part():
    asked = case(thing("cat", (0.2, 0.2, 0.2, 0.2)), thing("nightstand", RIGHT), thing("dog", LOW),
                 outside=["nightstand"])  # fmt: skip
    objects, kept = objects_and_found(asked, Rules(), *[Detection("cat", 0.9, LEFT)])
    assert objects == {"dog": 1} and not kept


def test_counts_and_relations_are_of_detections_that_reach_the_threshold(tmp_path):
    files = write_nsr1k(tmp_path)
    cases = nsr1k_set(files["gpt4.counting"], files["counting.val"], name="n").cases
    cases += nsr1k_set(files["gpt4.spatial"], files["spatial.val"], name="n").cases
    by_id = {c.layout.id: i for i, c in enumerate(cases)}
    judged = [judge(Rules())(r, c) for r, c in zip(answers(cases), cases, strict=True)]
    told = {name: judged[i] for name, i in by_id.items()}
    assert told["7-0"]["counting"] == [2, 2] and told["7-0"]["spatial"] == [0, 0]
    assert told["7-1"]["counting"] == [1, 2]  # one dog of two
    assert told["8-0"]["counting"] == [1, 2] and told["8-0"]["counting_clean"] == [1, 1]
    assert told["9-0"]["spatial"] == [1, 1] and told["9-0"]["counting"] == [0, 0]
    faint = [judge(Rules())(r, c) for r, c in zip(answers(cases, 0.4), cases, strict=True)]
    assert all(record["counting"][0] == record["spatial"][0] == 0 for record in faint)
    # The threshold that suits photographs: the dogs have .62, what is no dog has .3.
    extra = [Detection("dog", 0.3, LEFT), Detection("cat", 0.3, LEFT)]
    records = [
        stored(c, [Detection(t["category"], 0.62, t["box"]) for t in c.facts["objects"]] + extra)
        for c in cases
    ]
    assert best_threshold(records, cases) == 0.35


# ---- what must come out


def test_perfect_answers_have_100_percent_and_those_of_another_image_have_none():
    cases = heldout_cases(120)
    found = values(cases, answers(cases))
    assert (found["ap50"] == 1).all() and (found["ap"] == 1).all()
    others = [dict(r) for r in answers(cases[1:] + cases[:1])]
    assert values(cases, others)["ap50"][0] < 0.05


def test_dropped_categories_change_nothing():
    dropped = with_half_the_boxes(heldout_cases(120))
    asked = [
        stored(c, [Detection(t["category"], 0.9, t["box"]) for t in c.facts["objects"]
                   if t["boxed"]])
        for c in dropped
    ]  # fmt: skip
    for name, value in values(dropped, answers(dropped)).items():
        np.testing.assert_array_equal(value, values(dropped, asked)[name])


def test_the_ground_truth_of_coco_is_what_is_asked_for(tmp_path):
    cases = coco_set(*write_coco(tmp_path), name="coco2017").cases
    found = answers(cases)  # with the small car, which is no object to be found
    for rules in (Rules(), Rules(unasked="wrong"), Rules(truth="annotated")):
        assert values(cases, found, rules)["ap50"][0] == 1


# ---- the scorer


def test_the_probes_are_a_detector_like_any_other(monkeypatch):
    probes = Probes.load()
    seen = [Detection("cat", 0.9, LEFT), Detection("dog", 0.02, RIGHT)]
    scene = Scene("beach", "day", "color", np.zeros(2, np.float32), seen)
    monkeypatch.setattr(Probes, "scenes", lambda self, images: [scene] * len(images))
    scorer = probe_detector(probes)
    (record,) = scorer.score(np.zeros((1, 64, 64, 3), np.uint8), [case(thing("cat"))])
    assert [row[0] for row in record["detections"]] == ["cat", "dog"]
    assert [metric.name for metric in scorer.metrics][:2] == ["ap50", "ap"]


def test_metrics_of_a_second_detector_have_its_name():
    made = detection_scorer(lambda images, cases: [], name="dfine", version="1", rules=Rules(),
                            facts={})  # fmt: skip
    assert [metric.name for metric in made.metrics][0] == "dfine.ap50"
    assert made.facts["rules"]["threshold"] == 0.5 and made.facts["floor"] == 0.01


# ---- calibration


def calibration(folder: Path, clip=None) -> dict:
    """Of a detector whose AP50 is near the paper's: 0.58 and 0.225."""
    cases = coco_set(*write_coco(folder, 40), name="coco2017").cases

    def finding(dogs: int, cats: int) -> list[dict]:
        shown = {"dog": dogs, "cat": cats}  # in so many images
        return [
            record | {"detections": [d for d in record["detections"] if i < shown.get(d[0], 0)]}
            for i, record in enumerate(answers(cases))
        ]

    records = {1.0: finding(dogs=6, cats=40), 0.1: finding(dogs=18, cats=0)}
    clip = clip or {"clip_b16": {1.0: 33.0, 0.1: 34.2}, "clip_b32": {1.0: 30.5, 0.1: 31.5}}
    return calibrate(clip, {"rtdetr": records}, cases)


def test_the_nearest_cell_is_chosen_and_the_whole_grid_is_there(tmp_path):
    found = calibration(tmp_path)
    assert found["clip"]["chosen"]["clip"] == "clip_b32" and found["clip"]["reproduced"]
    assert len(found["clip"]["grid"]) == 2 and len(found["ap"]["grid"]) == 28
    cells = {tuple(str(c[k]) for k in ("metric", "truth", "unasked", "least_area"))
             for c in found["ap"]["grid"]}  # fmt: skip
    assert len(cells) == 28
    chosen = found["ap"]["chosen"]
    off = [abs(math.log(chosen["values"][f"{g:g}"] / target)) for g, target in YOLO.items()]
    assert chosen["error"] == pytest.approx(sum(off), abs=1e-4)
    errors = [c["error"] for c in found["ap"]["grid"] if c["within"]]
    assert found["ap"]["reproduced"] and chosen["error"] == min(errors)


def test_without_a_cell_within_10_percent_the_default_is_kept(tmp_path):
    found = calibration(tmp_path, clip={name: dict.fromkeys(CLIP, 20.0) for name in ("b16", "l14")})
    assert found["clip"]["chosen"]["clip"] == "b16" and not found["clip"]["reproduced"]
    cases = coco_set(*write_coco(tmp_path), name="coco2017").cases
    nothing = [{"id": c.layout.id, "detections": []} for c in cases]
    found = calibrate({"b16": CLIP}, {"d": {gamma: nothing for gamma in YOLO}}, cases)["ap"]
    assert not found["reproduced"] and found["chosen"]["error"] is None
    assert (found["chosen"]["metric"], found["chosen"]["least_area"]) == ("ap50", 0.01)


def test_a_calibration_is_frozen_and_gives_the_rules(tmp_path):
    found = calibration(tmp_path)
    path = tmp_path / "calibration.json"
    freeze(path, found)
    freeze(path, found)
    detector, metric, rules = chosen_rules(path)
    chosen = found["ap"]["chosen"]
    assert (detector, metric) == ("rtdetr", chosen["metric"])
    assert dataclasses.asdict(rules).items() >= {k: chosen[k] for k in ("truth", "unasked")}.items()
    with pytest.raises(ValueError, match="another calibration: it is frozen"):
        freeze(path, found | {"layouts": 1})
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a calibration with a choice"):
        chosen_rules(path)

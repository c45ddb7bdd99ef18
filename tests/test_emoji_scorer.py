"""Cases, detections and records of the emoji world, with known answers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from reground_jax.basics.boxes import iou
from reground_jax.emoji.cases import heldout_cases, nsr1k_cases, pack, with_rich_phrases
from reground_jax.emoji.placing import BACKGROUND, background_box
from reground_jax.emoji.probe_networks import NOTHING, Vocabulary
from reground_jax.emoji.probes import Probes, Scene, strongest
from reground_jax.emoji.scorer import TEXT, emoji_scorer, large_boxes, probe_score, record
from reground_jax.evaluation.cases import Case, with_half_the_boxes
from reground_jax.evaluation.scorers.detections import Detection
from reground_jax.evaluation.statistics import bootstrap_weights
from reground_jax.layout import Layout
from reground_jax.readers.nsr1k import phrase

NAMES = Vocabulary(64, ("cat", "dog", NOTHING), (None, "blue", "green"), ("beach",), ("color",))
LEFT, RIGHT, TINY = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), (0.4, 0.4, 0.6, 0.6)


def thing(category: str, box=LEFT, attribute: str | None = None, boxed: bool = True) -> dict:
    return {"category": category, "attribute": attribute, "box": box, "boxed": boxed}


def case(*objects: dict, **facts) -> Case:
    plain = {"setting": "beach", "time": "day", "setting_told": True, "style": "color"}
    boxed = [t for t in objects if t["boxed"]]
    layout = Layout("", [f"a {t['category']}" for t in boxed], [t["box"] for t in boxed], id="x")
    return Case(layout, plain | facts | {"objects": list(objects)})


def scene(*detections: Detection, setting="beach", time="day", style="color") -> Scene:
    return Scene(setting, time, style, np.zeros(2, np.float32), list(detections))


# ---- places


def test_one_detection_per_object_whatever_its_category():
    scores = np.full((1, 4, 2), 0.01)
    scores[0, 0] = 0.9, 0.1  # a cat
    scores[0, 1] = 0.2, 0.8  # a dog in the same place: weaker, so it goes
    scores[0, 2] = 0.3, 0.1  # a cat elsewhere; the last cell is too faint
    edges = np.array([[LEFT, LEFT, (0.5, 0.5, 1.2, 1.0), LEFT]])
    found = strongest(scores, edges, ("cat", "dog"))
    assert found == [Detection("cat", 0.9, LEFT), Detection("cat", 0.3, RIGHT)]


def test_background_boxes_show_no_object():
    rng = np.random.default_rng(0)
    found = [background_box([LEFT], rng) for _ in range(50)]
    boxes = np.array([box for box in found if box is not None])
    assert len(boxes) == 50 and (iou(np.array(LEFT), boxes) <= BACKGROUND).all()
    assert background_box([LEFT], rng, tries=0) is None


# ---- records


def test_a_record_has_what_was_requested_and_what_is_shown():
    asked = case(
        thing("cat", LEFT, "blue"),
        thing("cat", RIGHT, "blue"),
        thing("dog", TINY, boxed=False),
        thing("car", RIGHT, "upside down", boxed=False),
        time="night",
        style="pencil",
    )
    found = [("cat", LEFT), ("cat", RIGHT), ("cat", TINY), ("dog", TINY)]
    made = record(
        asked,
        scene(setting="snow", time="night", style="pencil"),
        boxes=large_boxes(asked, 64),
        in_boxes=["cat", NOTHING],
        found=found,
        attributes=["blue", None, None, "blue"],
    )
    shares = ("box", *TEXT, "count")
    assert {name: made[name] for name in shares} == {
        "box": [1, 2],
        "setting": [0, 1],
        "night": [1, 1],
        "style": [1, 1],
        "attribute": [1, 3],  # one blue cat of two, and no car upside down; blue dogs do not count
        "unboxed": [1, 2],
        "count": [1, 3],  # only the dog is exact: three cats instead of two, and no car
    }
    assert json.loads(json.dumps(made)) == made


def test_what_was_not_requested_is_not_counted():
    asked = case(thing("cat"), setting_told=False)
    made = record(asked, scene(), [("cat", LEFT)], ["cat"], [], [])
    for name in ("setting", "night", "style", "attribute", "unboxed"):
        assert made[name] == [0, 0], name


def test_detections_of_objects_without_a_box_are_not_mistakes():
    asked = case(thing("cat"), thing("dog", RIGHT, boxed=False))
    found = scene(Detection("cat", 0.9, LEFT), Detection("dog", 0.8, LEFT))
    made = record(asked, found, [], [], [], [])
    assert made["detections"] == [["cat", 0.9, 1]] and made["objects"] == {"cat": 1}


def test_a_category_with_and_without_boxes_is_excluded_entirely():
    asked = case(thing("cat"), thing("dog", RIGHT), thing("dog", TINY, boxed=False))
    found = scene(Detection("cat", 0.9, LEFT), Detection("dog", 0.8, RIGHT))
    made = record(asked, found, [], [], [], [])
    assert made["detections"] == [["cat", 0.9, 1]] and made["objects"] == {"cat": 1}


def test_boxes_below_16_pixels_are_not_scored():
    sides = {16: True, 15: False}
    for side, large in sides.items():
        box = (0.0, 0.0, side / 64, side / 64)
        assert bool(large_boxes(case(thing("cat", box)), 64)) == large


def test_the_scorer_requests_each_box_and_each_detection_once():
    """With two images, crops come back in the order requested."""

    class Fake(Probes):
        def scenes(self, images):
            return [
                scene(Detection("cat", 0.9, LEFT), Detection("dog", 0.4, RIGHT)),
                scene(Detection("dog", 0.6, RIGHT)),
            ]

        def objects(self, images, owners, boxes):
            asked = list(zip(owners, boxes, strict=True))
            assert asked == [(0, LEFT), (1, RIGHT), (0, LEFT), (1, RIGHT)]
            return [("cat", None), ("cat", None), ("cat", "blue"), ("dog", "green")]

    cases = [case(thing("cat", LEFT, "blue")), case(thing("dog", RIGHT, "blue"))]
    first, second = probe_score(Fake(NAMES, {}, 0.5))(np.zeros((2, 64, 64, 3), np.uint8), cases)
    assert first["box"] == [1, 1] and second["box"] == [0, 1]
    assert first["attribute"] == [1, 1] and second["attribute"] == [0, 1]
    assert first["count"] == [1, 1] and second["count"] == [1, 1]


# ---- cases


def test_heldout_cases_are_layouts_with_facts_and_fewer_are_the_first():
    cases = heldout_cases(1000)
    assert heldout_cases(3) == cases[:3]
    assert len({c.layout.id for c in cases}) == 1000
    for found in cases:
        boxed = [t for t in found.facts["objects"] if t["boxed"]]
        assert [t["box"] for t in boxed] == list(found.layout.boxes)
        assert all(t["category"] in p for t, p in zip(boxed, found.layout.phrases, strict=True))
    with pytest.raises(ValueError, match="cannot use 1001 layouts: choose 1 to 1000"):
        heldout_cases(1001)
    assert pack(cases) == pack(heldout_cases(1000))


def test_half_of_the_categories_lose_their_boxes_and_stay_in_the_caption():
    cases = heldout_cases(200)
    dropped = with_half_the_boxes(cases)
    whole = {c.layout.id: c for c in cases}
    assert 50 < len(dropped) < 200
    for less in dropped:
        before = whole[less.layout.id]
        names = {t["category"] for t in before.facts["objects"] if t["boxed"]}
        left = {t["category"] for t in less.facts["objects"] if t["boxed"]}
        assert len(left) == len(names) - len(names) // 2 and left < names
        assert len(less.layout.boxes) == sum(t["boxed"] for t in less.facts["objects"])
        assert less.layout.prompt == before.layout.prompt and less.counts == before.counts
    # The dropped categories depend on the layout alone, not on the number of layouts.
    assert with_half_the_boxes(cases[:50]) == dropped[: len(with_half_the_boxes(cases[:50]))]


def test_rich_phrases_include_attributes():
    asked = case(thing("cat", LEFT, "blue"), thing("dog", RIGHT), thing("car", boxed=False))
    rich = with_rich_phrases(asked)
    assert rich.layout.phrases == ("a blue cat", "a dog")
    assert rich.facts == asked.facts


def test_nsr1k_names_are_read_by_the_readers_rule_and_phrased_as_the_model_was_trained(tmp_path):
    def entry(*names: str) -> dict:
        objects = [[name, [0.1, 0.1, 0.6, 0.6]] for name in names]
        return {"query_id": len(names), "iter": 0, "prompt": "p", "object_list": objects}

    path = tmp_path / "gpt4.json"
    known = [entry("traffic-light-", "elephant"), entry("Traffic_Light", "cats", "teddy bear")]
    strange = [entry("fire-hydrant-"), entry("cat", "traffic lights tall"), entry()]
    broken = [{"prompt": "no objects"}]
    path.write_text(json.dumps([*known, *strange, *broken]))
    cases = nsr1k_cases(path, ("traffic light", "elephant", "cat", "teddy bear"))
    assert [c.layout.phrases for c in cases] == [
        ("a traffic light", "an elephant"),
        ("a traffic light", "a cat", "a teddy bear"),
    ]
    assert cases[1].counts == {"traffic light": 1, "cat": 1, "teddy bear": 1}
    assert phrase("fire-hydrant-") == "a fire hydrant"
    with pytest.raises(ValueError, match="no layout in .* has only objects that the probes know"):
        nsr1k_cases(path, ("zebra",))


def test_nsr1k_files_of_the_test_data_have_layouts_that_the_world_knows():
    path = Path(__file__).parent / "data/nsr1k/gpt4.counting.json"
    cases = nsr1k_cases(path, ("clock", "giraffe", "zebra", "bed", "cat", "dog", "bus"))
    assert cases and all(c.layout.id and c.facts["setting"] is None for c in cases)


# ---- the scorer as a value


def test_a_scorer_of_other_probes_or_rules_has_another_version(monkeypatch):
    probes = Probes.load()
    scorer = emoji_scorer(probes)
    assert emoji_scorer(Probes.load()).version == scorer.version
    others = dataclasses.replace(probes, threshold=probes.threshold / 2)
    assert emoji_scorer(others).version != scorer.version
    monkeypatch.setattr("reground_jax.emoji.scorer.RULES", 0)
    assert emoji_scorer(probes).version != scorer.version


def test_every_metric_is_measured_on_the_renders_that_are_shipped():
    scorer = emoji_scorer(Probes.load())
    renders = scorer.references["heldout"]["renders"]
    once = bootstrap_weights(len(renders), resamples=0)
    for metric in scorer.metrics:
        assert 0.85 < metric.statistic(renders, once)[0] <= 1, metric.name  # the reachable maximum
    (frechet,) = scorer.distances
    # 2.6 to other renders; for images generated without boxes it is 9.9.
    assert frechet.measure(renders[:1]) is None and 2 < (frechet.measure(renders) or 0) < 3
    for name in ("object", "attribute", "background", "setting", "time", "style"):
        assert name in scorer.about and scorer.facts["accuracy"]["renders"][name] > 0.9

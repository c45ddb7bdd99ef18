"""Boxes, records and statistics, on cases whose numbers are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from reground_jax.evaluation.boxes import (
    BACKGROUND,
    Detection,
    background_box,
    hits,
    iou,
    strongest,
)
from reground_jax.evaluation.cases import (
    Case,
    heldout_cases,
    nsr1k_cases,
    pack,
    with_half_the_boxes,
)
from reground_jax.evaluation.probes import NOTHING, Probes, Scene, Vocabulary
from reground_jax.evaluation.scorers import SHARES, large_boxes, probe_scorer, record
from reground_jax.evaluation.statistics import (
    Gaussian,
    above_curve,
    average_precision,
    bootstrap_weights,
    frechet_distance,
    interval,
    share,
)
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


# ---- boxes


def test_iou_of_boxes():
    a = np.array([0, 0, 0.5, 1.0])
    others = np.array([a, [0.25, 0, 0.75, 1], [0.5, 0, 1, 1], [0.2, 0.2, 0.2, 0.2]])
    # the same; a third; touching; without area
    np.testing.assert_allclose(iou(a, others), [1, 1 / 3, 0, 0])


def test_one_detection_per_object_whatever_its_category():
    scores = np.full((1, 4, 2), 0.01)
    scores[0, 0] = 0.9, 0.1  # a cat
    scores[0, 1] = 0.2, 0.8  # a dog in the same place: weaker, so it goes
    scores[0, 2] = 0.3, 0.1  # a cat elsewhere; the last cell is too faint
    edges = np.array([[LEFT, LEFT, (0.5, 0.5, 1.2, 1.0), LEFT]])
    found = strongest(scores, edges, ("cat", "dog"))
    assert found == [Detection("cat", 0.9, LEFT), Detection("cat", 0.3, RIGHT)]


def test_the_strongest_detection_of_an_object_is_the_hit():
    wanted = [("cat", LEFT), ("cat", RIGHT), ("dog", LEFT)]
    found = [
        Detection("cat", 0.5, LEFT),  # a second look at the first cat
        Detection("cat", 0.9, (0.0, 0.0, 0.5, 0.4)),
        Detection("cat", 0.8, TINY),  # IoU of 0.03 with either
        Detection("dog", 0.1, RIGHT),  # a dog, but not there
        Detection("bird", 0.7, LEFT),  # nobody asked for one
    ]
    assert hits(found, wanted) == [False, True, False, False, False]
    assert hits([], wanted) == [] and hits(found[:1], []) == [False]


def test_background_boxes_show_no_object():
    rng = np.random.default_rng(0)
    found = [background_box([LEFT], rng) for _ in range(50)]
    boxes = np.array([box for box in found if box is not None])
    assert len(boxes) == 50 and (iou(np.array(LEFT), boxes) <= BACKGROUND).all()
    assert background_box([LEFT], rng, tries=0) is None


# ---- records


def test_a_record_has_what_was_asked_for_and_what_is_shown():
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
    assert {name: made[name] for name in SHARES} == {
        "box": [1, 2],
        "setting": [0, 1],
        "night": [1, 1],
        "style": [1, 1],
        "attribute": [1, 3],  # one blue cat of two, and no car upside down; blue dogs do not count
        "unboxed": [1, 2],
        "count": [1, 3],  # three cats instead of two, one dog, no car
    }
    assert json.loads(json.dumps(made)) == made


def test_what_nobody_asked_for_is_not_counted():
    asked = case(thing("cat"), setting_told=False)
    made = record(asked, scene(), [("cat", LEFT)], ["cat"], [], [])
    for name in ("setting", "night", "style", "attribute", "unboxed"):
        assert made[name] == [0, 0], name


def test_detections_of_objects_without_a_box_are_no_mistakes():
    asked = case(thing("cat"), thing("dog", RIGHT, boxed=False))
    found = scene(Detection("cat", 0.9, LEFT), Detection("dog", 0.8, LEFT))
    made = record(asked, found, [], [], [], [])
    assert made["detections"] == [["cat", 0.9, 1]] and made["objects"] == {"cat": 1}


def test_a_category_with_and_without_boxes_is_left_out_whole():
    asked = case(thing("cat"), thing("dog", RIGHT), thing("dog", TINY, boxed=False))
    found = scene(Detection("cat", 0.9, LEFT), Detection("dog", 0.8, RIGHT))
    made = record(asked, found, [], [], [], [])
    assert made["detections"] == [["cat", 0.9, 1]] and made["objects"] == {"cat": 1}


def test_boxes_below_16_pixels_are_not_scored():
    sides = {16: True, 15: False}
    for side, large in sides.items():
        box = (0.0, 0.0, side / 64, side / 64)
        assert bool(large_boxes(case(thing("cat", box)), 64)) == large


def test_the_scorer_asks_for_each_box_and_each_detection_once():
    """Two images: crops come back in the order in which they were asked for."""

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
    first, second = probe_scorer(Fake(NAMES, {}, 0.5))(np.zeros((2, 64, 64, 3), np.uint8), cases)
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
    with pytest.raises(ValueError, match="1001 layouts are asked for: the held-out set has 1 to 1"):
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
    # Which go depends on the layout alone, not on how many there are.
    assert with_half_the_boxes(cases[:50]) == dropped[: len(with_half_the_boxes(cases[:50]))]


def test_rich_phrases_tell_what_the_caption_tells():
    asked = case(thing("cat", LEFT, "blue"), thing("dog", RIGHT), thing("car", boxed=False))
    assert asked.with_rich_phrases().layout.phrases == ("a blue cat", "a dog")
    assert asked.with_rich_phrases().facts == asked.facts


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
    with pytest.raises(ValueError, match="no layout of .* has only objects that the probes know"):
        nsr1k_cases(path, ("zebra",))


def test_nsr1k_files_of_the_test_data_have_layouts_that_the_world_knows():
    path = Path(__file__).parent / "data/nsr1k/gpt4.counting.json"
    cases = nsr1k_cases(path, ("clock", "giraffe", "zebra", "bed", "cat", "dog", "bus"))
    assert cases and all(c.layout.id and c.facts["setting"] is None for c in cases)


# ---- statistics


def rows(*pairs: list[int]) -> list[dict]:
    return [{"box": pair, "night": [1, 1]} for pair in pairs]


def test_a_share_is_of_all_objects_not_a_mean_of_images():
    records = rows([1, 1], [0, 3], [0, 0])
    weights = np.array([[1, 1, 1], [2, 0, 1], [0, 0, 1]], float)
    np.testing.assert_allclose(share("box")(records, weights), [0.25, 1, np.nan])
    np.testing.assert_allclose(share("box", "night")(records, weights[:1]), [4 / 7])


def detections(*found: tuple[str, float, int], **objects: int) -> dict:
    return {"detections": [list(one) for one in found], "objects": objects}


def test_average_precision_is_the_area_under_the_envelope():
    records = [
        detections(("cat", 0.9, 1), ("cat", 0.8, 0), ("cat", 0.7, 1), cat=2),
        detections(("dog", 0.6, 0), dog=1, cat=2),
    ]
    # Cats: precision 1, then 2/3, each over a quarter of the recall. Dogs: 0. Their mean.
    once = np.ones((1, 2))
    np.testing.assert_allclose(average_precision(records, once), [(1 / 4 + 2 / 3 / 4) / 2])
    # Only the first image: recall up to 1, no dog anywhere. Twice it: the same.
    weights = np.array([[1, 0], [2, 0]], float)
    np.testing.assert_allclose(average_precision(records, weights), [5 / 6, 5 / 6])


def test_counting_an_image_twice_is_having_it_twice():
    rng = np.random.default_rng(1)
    records = [
        detections(
            *((name, round(rng.random(), 3), int(rng.integers(2))) for name in ("cat", "dog")),
            cat=1, dog=2,
        )
        for _ in range(6)
    ]  # fmt: skip
    weights = np.array([[2, 0, 1, 3, 0, 1]])
    repeated = [r for r, times in zip(records, weights[0], strict=True) for _ in range(times)]
    np.testing.assert_allclose(
        average_precision(records, weights.astype(float)),
        average_precision(repeated, np.ones((1, 7))),
    )


def test_the_bootstrap_is_seeded_and_its_interval_is_that_of_a_proportion():
    count = 400
    records = rows(*([1, 1] if i % 4 else [0, 1] for i in range(count)))
    weights = bootstrap_weights(count)
    np.testing.assert_array_equal(weights, bootstrap_weights(count))
    assert (weights[0] == 1).all() and (weights.sum(1) == count).all()
    estimate, low, high = interval(share("box")(records, weights))
    assert estimate == 0.75
    half = 1.96 * np.sqrt(0.75 * 0.25 / count)  # the normal approximation
    np.testing.assert_allclose([low, high], [0.75 - half, 0.75 + half], atol=0.005)


def test_pairing_makes_the_interval_of_a_constant_difference_a_point():
    """Every image improves by one box: the difference is sure, however the images vary."""
    before = rows(*([i % 5, 6] for i in range(50)))
    after = rows(*([i % 5 + 1, 6] for i in range(50)))
    weights = bootstrap_weights(50)
    values = share("box")(after, weights) - share("box")(before, weights)
    np.testing.assert_allclose(interval(values), [1 / 6, 1 / 6, 1 / 6])
    alone = interval(share("box")(after, weights))
    assert alone[2] - alone[1] > 0.1


def test_a_point_is_compared_with_a_curve_at_its_own_x():
    """The line through (0, 10), (10, 20), (20, 0): 15 at 5, 10 at 15."""
    curve_x, curve_y = np.array([[10.0], [0.0], [20.0]]), np.array([[20.0], [10.0], [0.0]])
    for x, y, above in ((5, 15, 0), (15, 13, 3), (10, 17, -3), (21, 0, np.nan)):
        values = above_curve(np.array([x], float), np.array([y], float), curve_x, curve_y)
        np.testing.assert_allclose(values, [above])


def test_resamples_are_compared_with_their_own_curves():
    curve_x = np.array([[0.0, 10.0], [10.0, 20.0]])
    curve_y = np.array([[0.0, 50.0], [10.0, 60.0]])
    x, y = np.array([5.0, 15.0]), np.array([6.0, 56.0])
    np.testing.assert_allclose(above_curve(x, y, curve_x, curve_y), [1, 1])
    # Half of the resamples beyond the end: the others would say what is not so.
    beyond = above_curve(np.array([5.0, 25.0]), y, curve_x, curve_y)
    assert np.isnan(beyond).all()


def test_an_interval_of_nothing_is_nan():
    values = share("box")(rows([0, 0]), bootstrap_weights(1))
    assert np.isnan(interval(values)).all()


def test_the_frechet_distance_of_two_normals_is_the_formula():
    a = Gaussian(np.zeros(2), np.diag([1.0, 4.0]))
    b = Gaussian(np.array([3.0, 0.0]), np.diag([9.0, 4.0]))
    assert frechet_distance(a, b) == pytest.approx(9 + (1 - 3) ** 2)  # standard deviations
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])  # a turn of both changes nothing
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(13)


def test_features_become_their_mean_and_covariance():
    gaussian = Gaussian.of(np.array([[0.0, 0.0], [2.0, 4.0]]))
    np.testing.assert_allclose(gaussian.mean, [1, 2])
    np.testing.assert_allclose(gaussian.covariance, [[2, 4], [4, 8]])

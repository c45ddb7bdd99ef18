"""Key points: persons of a layout and from COCO's files, as GLIGEN was trained to read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reground_jax.keypoints import JOINTS
from reground_jax.layout import Layout
from reground_jax.layout_kinds import check_max_persons
from reground_jax.readers import Rejected
from reground_jax.readers.coco_keypoints import read_coco_keypoints
from reground_jax.readers.forms import form_of, read_layouts
from reground_jax.readers.lines import as_lines, parse_line

NAN = float("nan")


def person(*joints: Any, scale: float = 1.0) -> list[Any]:
    """The given joints, or two that span a square, and 17 in all."""
    given = list(joints or ((0.1, 0.1), (0.1 + 0.5 * scale, 0.1 + 0.5 * scale)))
    return given + [None] * (17 - len(given))


def of(*persons: Any) -> tuple:
    keypoints = Layout("x", id="x", keypoints=persons).keypoints
    assert keypoints is not None
    return tuple(keypoints)


# ---- in a layout


def test_joints_are_stored_as_fractions_or_none_whatever_they_were_given_as():
    (found,) = of(person((0.25, 0.5), [0.5, 0.75, 2], None, np.array([0, 1]), (1.0000001, -6e-8)))
    assert found[:5] == ((0.25, 0.5), (0.5, 0.75), None, (0.0, 1.0), (1.0, 0.0))
    assert found[5:] == (None,) * 12 and len(JOINTS) == 17
    assert all(type(number) is float for joint in filter(None, found) for number in joint)
    array = np.full((1, 17, 3), 0.5) + [0, 0, 1.5]
    assert of(*array) == (((0.5, 0.5),) * 17,) == of(*array[..., :2].tolist())


def test_only_joints_that_are_visible_count_wherever_the_others_are():
    (found,) = of(person((0.1, 0.2, 2), (0.3, 0.4, 1), (0, 0, 0), (NAN, NAN, 0)))
    assert found == ((0.1, 0.2), *(None,) * 16)


def test_persons_are_numbered_by_the_area_of_their_joints():
    small, large = person((0.25, 0.25), (0.5, 0.5)), person((0, 0), (1, 0.5))
    dot, again = person((0.9, 0.9)), person((0.5, 0.25), (0.75, 0.5))  # as large as the small one
    assert of(dot, small, large, again) == of(large, small, again, dot)
    assert of(again, small) != of(small, again)


def test_a_layout_with_persons_comes_back_equal_from_json_and_can_be_hashed():
    layout = Layout("x", keypoints=[person(scale=0.5), person()])
    value = json.loads(json.dumps(layout.to_json()))
    assert value["keypoints"][0][:3] == [[0.1, 0.1], [0.6, 0.6], None]
    assert Layout.from_json(value) == layout and hash(Layout.from_json(value)) == hash(layout)
    assert "keypoints" not in Layout("x").to_json() and Layout("x", keypoints=[]) == Layout("x")


@pytest.mark.parametrize(
    ("keypoints", "sentence"),
    [
        ("nose", "keypoints of layout 'x' are 'nose': give persons"),
        ([None], "person 1 of layout 'x' is None: a person is a list of 17 joints in COCO's"),
        ([person()[:16]], "person 1 of layout 'x' has 16 joints: a person is a list of 17"),
        ([person(), [None] * 17], "person 2 of layout 'x' has no visible joint: give one (with"),
        ([person((0.5, 0.5, 1))], "person 1 of layout 'x' has no visible joint"),
        (
            [person((0.5, NAN))],
            "a coordinate of the nose of person 1 of layout 'x' is nan: give fr",
        ),
        ([person((0.5, 0.5), (1.5, 0.5))], "the left eye of person 1 of layout 'x' is at 1.5, 0.5"),
        ([person((-0.1, 0.5))], "outside the image: give fractions of the image, from 0 to 1"),
        ([person((0.5, 0.5, 3))], "visibility of the nose of person 1 of layout 'x' is 3: it is 2"),
        ([person((0.5, 0.5, None))], "visibility of the nose of person 1 of layout 'x' is None"),
        ([person((0.5,))], "the nose of person 1 of layout 'x' is (0.5,): give [x, y], [x, y, v]"),
        ([person("0.5, 0.5")], "the nose of person 1 of layout 'x' is '0.5, 0.5': give [x, y]"),
        ([person(("0.5", 0.5))], "a coordinate of the nose of person 1 of layout 'x' is '0.5'"),
    ],
)
def test_key_points_that_are_none_are_one_sentence(keypoints, sentence):
    with pytest.raises(ValueError) as error:
        Layout("x", id="x", keypoints=keypoints)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_more_persons_than_the_model_knows_is_an_error_and_never_a_cut():
    layout = Layout("crowd", id="crowd", keypoints=[person()] * 9)
    check_max_persons(layout, 9)
    with pytest.raises(
        ValueError, match="'crowd' has the key points of 9 persons, but .* 8: leave"
    ):
        check_max_persons(layout, 8)
    check_max_persons(Layout("nobody"), 8)


# ---- COCO's files


def thing(number: int, *joints: tuple[float, float, int], image: int = 1, **changes: Any) -> dict:
    flat = [value for joint in joints for value in joint]
    box = {"bbox": [0, 0, 10, 10], "keypoints": flat + [0] * (51 - len(flat))}
    return {"id": number, "image_id": image, "category_id": 1} | box | changes


def read(folder: Path, *things: dict, captions: bool = False, **size: int) -> list[Any]:
    """The entries of a file with one image of 200 x 100 pixels."""
    image = {"id": 1, "file_name": "1.jpg", "width": 200, "height": 100} | size
    content = {"images": [image], "annotations": list(things), "categories": []}
    (folder / "persons.json").write_text(json.dumps(content))
    texts = [{"id": 1, "image_id": 1, "caption": " a walk \n"}]
    (folder / "captions.json").write_text(json.dumps({"annotations": texts}))
    second = folder / "captions.json" if captions else None
    return list(read_coco_keypoints(folder / "persons.json", second))


def test_joints_of_the_center_square_are_kept_in_fractions_of_it(tmp_path):
    joints = ((100, 50, 2), (75, 0, 2), (49, 50, 2), (151, 50, 2), (100, 50, 1), (150, 100, 2))
    (layout,) = read(tmp_path, thing(1, *joints))
    assert layout.id == "1" and layout.prompt == "" and not layout.boxes
    found = layout.keypoints[0]
    assert found[:6] == ((0.5, 0.5), (0.25, 0.0), None, None, None, (1.0, 1.0))
    assert found[6:] == (None,) * 11
    (tall,) = read(tmp_path, thing(1, (50, 100, 2)), width=100, height=200)
    assert tall.keypoints[0][0] == (0.5, 0.5)
    (told,) = read(tmp_path, thing(1, *joints), captions=True)
    assert told.prompt == "a walk"


def test_persons_without_joints_and_crowds_are_left_out_and_the_largest_8_boxes_kept(tmp_path):
    many = [thing(n, (60 + n, 50, 2), (61 + n, 51, 2), bbox=[60, 10, n, n]) for n in range(1, 11)]
    nobody = thing(20, (100, 50, 1), bbox=[50, 0, 100, 100])
    outside = thing(21, (10, 10, 2), bbox=[0, 0, 60, 90])
    crowd = thing(22, (100, 50, 2), iscrowd=1)
    dog = {"id": 23, "image_id": 1, "category_id": 2, "bbox": [50, 0, 100, 100]}
    (layout,) = read(tmp_path, nobody, outside, crowd, dog, *many)
    left = sorted(round(found[0][0] * 100 + 50) - 60 for found in layout.keypoints)
    assert left == [3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"keypoints": [0] * 50}, "annotation 1: its keypoints are [0, 0, 0"),
        ({"keypoints": "x"}, "it must be x, y and visibility of 17 joints, in pixels"),
        ({"keypoints": [0, 0, 0.9] + [0] * 48}, "visibility of a joint is 0.9: it must be 0, 1 or"),
        ({"keypoints": [NAN, 0, 2] + [0] * 48}, "a number of its keypoints is nan"),
        ({"bbox": None}, "annotation 1: its bbox is None"),
        ({"keypoints": [0] * 51}, "no person has a visible joint in the center square"),
        ({"iscrowd": 7}, "iscrowd of annotation 1 is 7"),
    ],
)
def test_an_image_with_a_bad_person_is_rejected_with_the_reason(change, reason, tmp_path):
    (entry,) = read(tmp_path, thing(1, (100, 50, 2), **change))
    assert isinstance(entry, Rejected) and reason in entry.reason
    assert entry.source.endswith("persons.json, image 1")


def test_annotations_of_no_image_and_images_without_captions_are_reported(tmp_path):
    entries = read(tmp_path, thing(1, (100, 50, 2)), thing(2, (100, 50, 2), image=3))
    assert isinstance(entries[0], Layout) and "not in images" in entries[1].reason
    (entry,) = read(tmp_path, thing(2, (100, 50, 2), image=2), captions=True, id=2)
    assert isinstance(entry, Rejected) and "the image has no caption" in entry.reason


def test_a_file_of_key_points_is_recognized_with_and_without_captions(tmp_path):
    read(tmp_path, thing(1, (100, 50, 2)))
    path, captions = str(tmp_path / "persons.json"), str(tmp_path / "captions.json")
    content = json.loads((tmp_path / "persons.json").read_text())
    assert form_of(content, path) == "coco_keypoints"
    assert form_of(content | {"annotations": []}, path) == "coco"
    for second, prompt in ((None, ""), (captions, "a walk")):
        entries = read_layouts(path, None, second)
        assert entries is not None
        (layout,) = entries
        assert isinstance(layout, Layout) and layout.prompt == prompt and layout.keypoints
    # As instances, if that is asked for: the boxes of the persons.
    content["categories"] = [{"id": 1, "name": "person"}]
    content["annotations"][0]["bbox"] = [50, 0, 50, 50]
    (tmp_path / "persons.json").write_text(json.dumps(content))
    entries = read_layouts(path, "coco", captions)
    assert entries is not None
    (layout,) = entries
    assert isinstance(layout, Layout) and layout.phrases == ("a person",) and not layout.keypoints


def test_layouts_from_coco_survive_the_way_through_lines(tmp_path):
    (layout,) = read(tmp_path, thing(1, (100, 50, 2), (75, 30, 2)))
    (line,) = as_lines([layout], "persons.json")
    parsed = parse_line(line.encode())
    assert parsed is not None and parsed.layout == layout

"""Layouts: what is allowed, what is rejected with which message, and the JSON round trip."""

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from reground_jax.layout import Layout, check_max_boxes

ROOT = Path(__file__).parents[1]
TEDDY = ROOT / "tests/data/layouts/teddy.json"


def one_box(*box: object, **fields: object) -> dict:
    return {"prompt": "a cat", "phrases": ["a cat"], "boxes": [list(box)], "id": "cat-01"} | fields


def test_lists_and_arrays_are_stored_as_tuples_of_floats():
    boxes = np.array([[0, 0.25, 0.5, 1]])  # exact in binary
    layout = Layout(prompt="a cat", phrases=["a cat"], boxes=boxes)  # type: ignore[arg-type]
    assert layout.phrases == ("a cat",)
    assert layout.boxes == ((0.0, 0.25, 0.5, 1.0),)
    assert all(type(edge) is float for edge in layout.boxes[0])
    assert hash(layout) == hash(Layout("a cat", ("a cat",), ((0, 0.25, 0.5, 1),)))


def test_empty_prompts_and_zero_boxes_are_legal():
    assert Layout(prompt="").boxes == ()


@pytest.mark.parametrize(
    "box",
    [
        (0.0, 1.0, 0.0, 1.0),  # GLIGEN's style token
        (0.0, 0.0, 0.0, 0.0),
        (0.2, 0.1, 0.2, 0.9),  # no width
        (0.0, 0.0, 1.0, 1.0),
    ],
)
def test_boxes_without_area_and_boxes_at_the_edge_are_kept_as_given(box: tuple):
    assert Layout("x", ["x"], [box]).boxes == (box,)


@pytest.mark.parametrize("path", [TEDDY])
def test_the_example_layout_loads_and_comes_back_equal_from_json(path: Path):
    layout = Layout.load(path)
    assert layout.id == "teddy" and len(layout.boxes) == 2
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_a_layout_without_id_comes_back_without_one():
    layout = Layout("ein Bär 熊", ["a bear"], [(0, 0, 1, 1)], negative_prompt="lowres")
    assert "id" not in layout.to_json()
    assert Layout.from_json(layout.to_json()) == layout


def test_xywh_boxes_become_corners():
    value = one_box(0.25, 0.5, 0.5, 0.25)  # exact in binary
    assert Layout.from_json(value, box_format="xywh").boxes == ((0.25, 0.5, 0.75, 0.75),)
    assert Layout.from_json(value | {"box_format": "xywh"}).boxes == ((0.25, 0.5, 0.75, 0.75),)


def test_an_xywh_box_may_pass_the_edge_by_a_rounding_error_and_no_more():
    width = 0.9 + 2e-7  # x + width exceeds 1 by a fifth of the tolerance of 1e-6
    assert Layout.from_json(one_box(0.1, 0, width, 1), box_format="xywh").boxes[0][2] == 1.0
    with pytest.raises(ValueError, match=r"x \+ width is 1.1, outside 0..1"):
        Layout.from_json(one_box(0.1, 0, 1.0, 1), box_format="xywh")


def test_the_sentence_for_an_inverted_box_is_the_one_in_the_documentation():
    phrases = ["a", "b", "c"]
    boxes = [[0, 0, 1, 1], [0, 0, 1, 1], [0.4, 0.1, 0.3, 0.9]]
    with pytest.raises(ValueError) as error:
        Layout("cats", phrases, boxes, id="cat-01")
    assert str(error.value) == (
        "box 3 of layout 'cat-01' is [0.4, 0.1, 0.3, 0.9]: x1 must not be less than x0; "
        "give xyxy fractions of the image, or box_format='xywh'"
    )


@pytest.mark.parametrize(
    "value, sentence",
    [
        (one_box(0.1, 0.9, 0.3, 0.2), "y1 must not be less than y0"),
        (one_box(10, 20, 300, 400), "x0 is 10, outside 0..1; give xyxy fractions of the image, or "
         "box_format='xywh' (divide pixels by the image's width and height)"),
        (one_box(-0.1, 0, 1, 1), "box 1 of layout 'cat-01' is [-0.1, 0.0, 1.0, 1.0]: x0 is -0.1"),
        (one_box(0, 0, float("nan"), 1), "[0.0, 0.0, nan, 1.0]: every number must be finite"),
        (one_box(0, 0, float("inf"), 1), "every number must be finite"),
        (one_box(0, 0, 1), "a box has four numbers, not 3"),
        (one_box("0", 0, 1, 1), "a box is a list of four numbers"),
        (one_box(0, 0, None, 1), "a box is a list of four numbers"),
        (one_box(boxes=[0, 0, 1, 1]), "box 1 of layout 'cat-01' is 0: a box is a list"),
        (one_box(boxes="0,0,1,1"), "boxes of layout 'cat-01' are '0,0,1,1': give a list of boxes"),
        (one_box(boxes=[]), "layout 'cat-01' has 1 phrases and 0 boxes: give one box per phrase"),
        (one_box(0, 0, 1, 1, phrases=["  "]), "phrase 1 of layout 'cat-01' is '  ': a phrase must"),
        (one_box(0, 0, 1, 1, phrases=[3]), "phrase 1 of layout 'cat-01' is 3"),
        (one_box(0, 0, 1, 1, phrases="a cat"), "phrases of layout 'cat-01' are 'a cat': give a li"),
        (one_box(0, 0, 1, 1, prompt=None), "of layout 'cat-01' is None: it must be a string"),
        (one_box(0, 0, 1, 1, negative_prompt=1), "negative_prompt of layout 'cat-01' is 1"),
        (one_box(0, 0, 1, 1, id=7), "id of layout 7 is 7: it must be a string"),
        (one_box(0, 0, 1, 1, phrase=[]), "layout field 'phrase' is unknown: did you mean 'phrases"),
        ({"id": "cat-01"}, "layout 'cat-01' has no prompt: add one; it may be empty"),
        (one_box(0, 0, 1, 1, box_format="xyhw"), "box_format 'xyhw' is unknown: did you mean 'xy"),
        (one_box(0.5, 0, -0.1, 1, box_format="xywh"), "[0.5, 0.0, -0.1, 1.0]: width must not be"),
        (["a cat"], "expected a JSON object"),
    ],
)  # fmt: skip
def test_a_bad_layout_is_one_sentence_with_value_rule_and_way_out(value, sentence: str):
    with pytest.raises(ValueError) as error:
        Layout.from_json(value)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_layout_without_id_is_named_by_the_start_of_its_prompt():
    prompt = "a cat on a very long sofa that stands in a very long room"
    with pytest.raises(ValueError) as error:
        Layout(prompt, ["a cat"], [])
    # 40 characters at most, the ellipsis one of them
    assert "the layout with prompt 'a cat on a very long sofa that stands i…' has 1" in str(
        error.value
    )


def test_more_boxes_than_grounding_tokens_is_an_error_and_never_a_cut():
    layout = Layout("crowd", ["a face"] * 31, [(0, 0, 1, 1)] * 31, id="crowd")
    check_max_boxes(layout, 31)
    with pytest.raises(ValueError) as error:
        check_max_boxes(layout, 30)  # 30 as trained
    assert "layout 'crowd' has 31 boxes, more than max_boxes=30" in str(error.value)
    assert "max_boxes=31" in str(error.value)


def test_an_unreadable_layout_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot read layout file .*nothing.json: No such file"):
        Layout.load(tmp_path / "nothing.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"prompt": ')
    with pytest.raises(ValueError, match="layout file .*broken.json is not JSON"):
        Layout.load(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="layout file .*broken.json"):
        Layout.load(broken)
    broken.write_text(json.dumps(one_box(2, 0, 1, 1)))
    with pytest.raises(ValueError, match="layout file .*broken.json: box 1 of layout 'cat-01'"):
        Layout.load(broken)


@pytest.mark.parametrize(
    "name",
    [
        "layout",
        "layout_fields",
        "layout_kinds",
        "kinds",
        "keypoints",
        "pictures/__init__",
        "settings",
        "amounts",
        "attention_guidance",
        "basics/fields",
        "readers/__init__",
        "readers/nsr1k",
    ],
)
def test_request_modules_import_nothing_heavy(name: str):
    tree = ast.parse((ROOT / f"reground_jax/{name}.py").read_text())
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in tree.body  # what a function imports is imported when it is needed
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    roots = {module.split(".")[0] for module in imported}
    assert not roots & {"jax", "flax", "numpy", "PIL", "jaxtyping"}
    ours = {module for module in imported if module.startswith("reground_jax.")}
    rooms = {module.split(".")[1] for module in ours}
    assert imported and rooms <= {
        "amounts",
        "attention_guidance",
        "basics",
        "keypoints",
        "kinds",
        "layout",
        "layout_fields",
        "pictures",
        "readers",
        "settings",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a \ud83d dog"},
        {"prompt": "a dog", "negative_prompt": "\udfff"},
        {"prompt": "a dog", "id": "caf\udce9"},
        {"prompt": "a dog", "phrases": ["a \ud800"], "boxes": [[0, 0, 1, 1]]},
    ],
)
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(fields):
    with pytest.raises(ValueError, match=r"has an unpaired surrogate \('\\ud") as error:
        Layout.from_json(fields)
    str(error.value).encode("utf-8")  # the message itself can be printed


def test_a_whole_surrogate_pair_is_one_character():
    assert Layout.from_json(json.loads(r'{"prompt": "a \ud83d\udc36"}')).prompt == "a 🐶"


def test_corners_off_by_a_rounding_error_are_moved_onto_the_edge():
    boxes = [[-6e-8, 0.25, 1.0000001, 1]]
    assert Layout("x", ["x"], boxes).boxes == ((0.0, 0.25, 1.0, 1.0),)
    sides = [[-6e-8, 0.25, 0.5, 0.7500001]]
    assert Layout("x", ["x"], sides, box_format="xywh").boxes[0][::3] == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"x1 is 1.01, outside 0..1"):
        Layout("x", ["x"], [[0, 0, 1.01, 1]])
    with pytest.raises(ValueError, match=r"x1 is 1.000002, outside 0..1"):
        Layout("x", ["x"], [[0, 0, 1.000002, 1]])


def test_the_constructor_takes_the_box_format_that_its_errors_advise():
    layout = Layout("a", ["a dog"], [(0.5, 0.5, 0.25, 0.25)], box_format="xywh")
    assert layout.boxes == ((0.5, 0.5, 0.75, 0.75),)
    assert dataclasses.replace(layout, prompt="b").boxes == layout.boxes  # corners stay corners
    with pytest.raises(ValueError, match="box_format 'xyhw' is unknown"):
        Layout("a", box_format="xyhw")


def test_numbers_without_end_and_lists_without_end_make_short_messages():
    for box in ([10**400, 0, 1, 1], [0.5] * 100_000, ["x" * 100_000]):
        with pytest.raises(ValueError) as error:
            Layout("x", ["x"], [box])
        assert len(str(error.value)) < 400


def test_a_field_that_is_null_counts_as_left_out():
    value = {"prompt": "a", "phrases": None, "boxes": None, "negative_prompt": None, "id": None}
    assert Layout.from_json(value | {"box_format": None}) == Layout("a")
    with pytest.raises(ValueError, match="prompt of .* is None: it must be a string"):
        Layout.from_json({"prompt": None})


def test_a_layout_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "layout.json").write_bytes(b'\xef\xbb\xbf{"prompt": "a cat"}')
    assert Layout.load(tmp_path / "layout.json") == Layout("a cat")

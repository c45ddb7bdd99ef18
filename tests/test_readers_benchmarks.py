"""Readers for what people evaluate attention guidance on: small files of the same form."""

import json

import pytest

from reground_jax.layout import Layout
from reground_jax.readers import Rejected
from reground_jax.readers.boxdiff import read_boxdiff
from reground_jax.readers.cobench import read_cobench
from reground_jax.readers.drawbench import read_drawbench
from reground_jax.readers.forms import read_layouts
from reground_jax.words import check_words

BOXDIFF = [
    {
        "filename": "a_horse_and_a_sofa/3.png",
        "objects": {"sofa": [0, 256, 512, 512], "horse": [64, 0, 192, 128]},
    },
    {"filename": "a_horse_and_a_sofa/4.png", "objects": {"horse": [64, 0, 32, 128]}},
    {"objects": {}},
]
DRAWBENCH = [
    {"category": "counting", "prompt": "Two cars.", "names": ["car1", "car_2"],
     "boxes": [[0, 0, 256, 256], [256, 0, 520, 256]]},
    {"prompt": "One car.", "names": ["car"], "boxes": [[300, 0, 256, 256]]},
]  # fmt: skip
COBENCH = """\
id,original_id,category,prompt,obj1,bbox1,obj2,bbox2
7,1,animals,"a cat and a dog, asleep",a cat,"0,0,256,512",a dog,"256,0,512,512"
8,1,animals,a cat,a cat,"128,128,256,256",,
9,1,animals,a cat,a cat,"128,128,256",,
"""


def test_boxdiffs_prompt_is_the_folder(tmp_path):
    path = tmp_path / "bbox_as_condition.json"
    path.write_text(json.dumps(BOXDIFF))
    first, *wrong = read_boxdiff(path)
    boxes = [(0, 0.5, 1, 1), (0.125, 0, 0.375, 0.25)]
    name = "a_horse_and_a_sofa/3"
    assert first == Layout("a horse and a sofa", ["sofa", "horse"], boxes, id=name)
    check_words(first)
    assert [type(entry) for entry in wrong] == [Rejected, Rejected]
    assert "corners are in the wrong order" in wrong[0].reason and "filename" in wrong[1].reason


def test_drawbenchs_names_lose_their_numbers(tmp_path):
    path = tmp_path / "drawbench.json"
    path.write_text(json.dumps(DRAWBENCH))
    first, wrong = read_drawbench(path)
    boxes = [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5)]  # clipped
    assert first == Layout("Two cars.", ["a car", "a car"], boxes, id="counting-0")
    check_words(first)
    assert isinstance(wrong, Rejected)


def test_cobenchs_rows_have_as_many_objects_as_are_filled_in(tmp_path):
    path = tmp_path / "c_bench.csv"
    path.write_text(COBENCH)
    first, second, wrong = read_cobench(path)
    boxes = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    assert first == Layout("a cat and a dog, asleep", ["a cat", "a dog"], boxes, id="7")
    assert second == Layout("a cat", ["a cat"], [(0.25, 0.25, 0.5, 0.5)], id="8")
    assert isinstance(wrong, Rejected) and "line 4" in wrong.source
    path.write_text("id,text\n1,a cat\n")
    with pytest.raises(ValueError, match="has no column 'prompt'"):
        list(read_cobench(path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(BOXDIFF)), ("b.json", json.dumps(DRAWBENCH)), ("c.csv", COBENCH),
    ],
)  # fmt: skip
def test_the_form_is_known_from_the_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    entries = read_layouts(str(path), None, None)
    assert entries is not None and isinstance(next(iter(entries)), Layout)

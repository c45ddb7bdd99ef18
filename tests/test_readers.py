"""Readers: NSR-1K and LayoutGPT files become layouts; bad entries are reported, not lost."""

import json
from pathlib import Path

import pytest

from reground_jax.layout import Layout
from reground_jax.readers import Rejected
from reground_jax.readers.nsr1k import phrase, read_nsr1k

DATA = Path(__file__).parent / "data/nsr1k"


def layouts(name: str) -> dict[str | None, Layout]:
    entries = list(read_nsr1k(DATA / name))
    assert all(isinstance(entry, Layout) for entry in entries)
    return {entry.id: entry for entry in entries if isinstance(entry, Layout)}


def test_ground_truth_boxes_are_read_as_corner_and_size():
    clock = layouts("counting.val.json")["38699"]
    assert clock.prompt == "there is one clock in the image"
    assert clock.phrases == ("a clock",)
    # the file says y 0.175046875 and height 0.645140625
    assert clock.boxes[0] == pytest.approx((0.0, 0.175046875, 1.0, 0.8201875), abs=1e-12)


def test_gpt4_boxes_are_read_as_two_corners():
    clock = layouts("gpt4.counting.json")["38699-1"]
    assert clock.boxes == ((0.4375, 0.390625, 0.5625, 0.5625),)  # as in the file


def test_every_entry_of_both_files_is_a_layout_with_an_id_of_its_own():
    assert len(layouts("counting.val.json")) == 12  # entries in the excerpt
    assert len(layouts("gpt4.counting.json")) == 12  # two for each of six prompts


@pytest.mark.parametrize(
    "category, expected",
    [
        ("clock", "a clock"),
        ("fire-hydrant-", "a fire hydrant"),
        ("golf_club_bag", "a golf club bag"),
        ("x-ray_machine", "a x ray machine"),
        ("dining table", "a dining table"),
        ("airplane", "a airplane"),  # LayoutGPT writes "a " before vowels too
    ],
)
def test_category_names_are_cleaned_by_the_stated_rule(category: str, expected: str):
    assert phrase(category) == expected


def test_stray_category_names_in_the_real_file_become_clean_phrases():
    found = {p for layout in layouts("gpt4.counting.json").values() for p in layout.phrases if p}
    assert "a fire hydrant" in found and "a golf ball" in found
    assert not any(c in p for p in found for c in "-_") and all(p == p.strip() for p in found)


def test_a_bad_entry_is_rejected_with_its_place_and_the_others_still_come(tmp_path: Path):
    good = {"query_id": 1, "iter": 0, "prompt": "a cat", "object_list": [["cat", [0, 0, 1, 1]]]}
    entries = [
        good | {"object_list": [["cat", [0.4, 0.1, 0.3, 0.9]]]},
        {"prompt": "no id", "object_list": []},
        good | {"object_list": [["cat"]]},
        good | {"object_list": [["-", [0, 0, 1, 1]]]},
        good | {"object_list": None},
        good,
    ]
    path = tmp_path / "layouts.json"
    path.write_text(json.dumps(entries))
    *others, last = read_nsr1k(path)
    assert isinstance(last, Layout) and last.id == "1-0"
    rejected = [entry for entry in others if isinstance(entry, Rejected)]
    assert len(rejected) == len(others)
    inverted, unnamed, cut, nameless, null = rejected
    assert inverted.source == f"{path}, entry 1"
    assert "box 1 of layout '1-0' is [0.4, 0.1, 0.3, 0.9]: x1 must not be less" in inverted.reason
    assert "expected prompt, object_list, and id" in unnamed.reason
    assert "object ['cat'] of entry '1-0' is not [category, box]" in cut.reason
    assert "object ['-', [0, 0, 1, 1]] of entry '1-0'" in nameless.reason
    assert "expected prompt, object_list" in null.reason


def test_a_file_of_another_form_is_an_error(tmp_path: Path):
    path = tmp_path / "file.json"
    with pytest.raises(ValueError, match="cannot read NSR-1K file .*: No such file"):
        list(read_nsr1k(path))
    path.write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        list(read_nsr1k(path))
    path.write_text("{}")
    with pytest.raises(ValueError, match="holds a JSON dict: expected the list"):
        list(read_nsr1k(path))

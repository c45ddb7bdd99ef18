"""What `batch` reads: lines, the first pass over them, files in other formats; sampler stubbed."""

import json

import numpy as np
import pytest

from reground_jax.batch.index import load_index, open_source
from reground_jax.batch.store import open_store
from reground_jax.batch.verify import verify
from reground_jax.layout import Layout
from reground_jax.readers.lines import Line, parse_line
from tests.batch_cases import DATA, generate, layout, metadata, refusal, rejected, write_lines

pytestmark = pytest.mark.usefixtures("stub")

# ---- lines


@pytest.mark.parametrize(
    "line, expected",
    [
        (layout(1), Line(Layout("cat 1", ["a cat"], [(0.1, 0.2, 0.5, 0.9)], id="cat-1"), None)),
        ({"id": 7, "prompt": "", "seed": 4294967295}, Line(Layout("", id="7"), 4294967295)),
        (
            layout(2, boxes=[[0.1, 0.2, 0.5, 0.5]], box_format="xywh", negative_prompt="dogs"),
            Line(Layout("cat 2", ["a cat"], [(0.1, 0.2, 0.6, 0.7)], "dogs", "cat-2"), None),
        ),
    ],
)
def test_a_line_is_a_layout_with_an_id_and_perhaps_a_seed(line, expected):
    assert parse_line(json.dumps(line).encode()) == expected


@pytest.mark.parametrize(
    "line, reason",
    [
        ({"prompt": "a cat"}, 'has no "id"'),
        ([1], 'has no "id"'),
        (layout(1, seed=-1), "seed is -1: a seed is an integer from 0 to 4294967295"),
        (layout(1, seed=True), "seed is True"),
        (layout(1, boxes=[[0.5, 0, 0.1, 1]]), "x1 must not be less than x0"),
        (layout(1, color="red"), "layout field 'color' is unknown"),
        ({"id": True, "prompt": "a cat"}, "id is True: it must be a string or a whole number"),
    ],
)
def test_a_line_that_is_no_layout_says_why(line, reason):
    with pytest.raises(ValueError, match=reason):
        parse_line(json.dumps(line).encode())


# ---- the first pass


def test_bad_lines_are_rejected_with_their_number_and_the_rest_goes_on(tmp_path, capsys):
    lines = [layout(0, prompt="gâteau 猫"), "", "{oops", layout(1), layout(2, boxes=[]), layout(3)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    assert generate(source, tmp_path / "out") == 0
    assert "2 of 6 lines are not valid layouts; see" in capsys.readouterr().err
    broken, boxless = rejected(tmp_path / "out")
    assert (broken["line"], boxless["line"]) == (3, 5)
    assert "not a line of JSON" in broken["reason"]
    assert "1 phrases and 0 boxes" in boxless["reason"]
    made = metadata(tmp_path / "out")
    assert [(row["line"], row["id"]) for row in made] == [(1, "cat-0"), (4, "cat-1"), (6, "cat-3")]
    assert made[0]["layout"]["prompt"] == "gâteau 猫"


def test_rejected_lines_leave_their_slot_so_that_the_others_keep_their_places(tmp_path, stub):
    lines = [layout(0), "{oops", layout(2), layout(3), layout(4)]
    generate(write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out")
    groups = {group for group, _, _ in stub[0].enqueued}
    assert groups == {("cat 0", ""), ("cat 2", "cat 3"), ("cat 4", "")}


def test_a_unit_without_any_layout_is_left_out(tmp_path):
    lines = [layout(0), *["{oops"] * 8, layout(9)]
    out = tmp_path / "out"
    generate(write_lines(tmp_path / "in.jsonl", lines), out)
    assert [path.name for path in sorted(out.glob("images/*"))] == ["000000000", "000000002"]
    report = verify(open_store(str(out)))
    assert not report.problems and report.images == 2


def test_strict_stops_at_the_first_bad_line_before_anything_is_made(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", [layout(0), "{oops"])
    message = refusal(capsys, source, tmp_path / "out", "--strict")
    assert "line 2: not a line of JSON" in message
    assert not (tmp_path / "out/images").exists()
    assert generate(source, tmp_path / "out") == 0
    assert "line 2" in refusal(capsys, source, tmp_path / "out", "--strict")


def test_duplicate_ids_are_an_error_that_names_the_lines(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", [layout(0), "", layout(1), layout(0)])
    message = refusal(capsys, source, tmp_path / "out")
    assert "'cat-0' (lines 1 and 4)" in message
    write_lines(source, [layout(0), layout(1)])  # corrected
    assert generate(source, tmp_path / "out") == 0


def test_too_many_boxes_and_a_seed_among_several_run_seeds_are_rejected(tmp_path):
    many = layout(0, phrases=["a cat"] * 3, boxes=[[0, 0, 1, 1]] * 3)
    source = write_lines(tmp_path / "in.jsonl", [many, layout(1, seed=5), layout(2)])
    generate(source, tmp_path / "out", "--max-boxes", "2", "--seeds", "0", "1")
    assert {row["id"] for row in metadata(tmp_path / "out")} == {"cat-2"}
    reasons = (tmp_path / "out/rejected.jsonl").read_text()
    assert "more than max_boxes=2" in reasons and "has its own seed" in reasons


def test_an_input_without_layouts_is_an_error(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", ["{oops"])
    assert "no line of the input is a valid layout" in refusal(capsys, source, tmp_path / "out")
    missing = refusal(capsys, tmp_path / "missing.jsonl", tmp_path / "out")
    assert "cannot read" in missing and "No such file" in missing


def test_the_index_is_read_back_and_not_built_again(ten, tmp_path, monkeypatch):
    store = open_store(str(tmp_path / "out"))
    rules = {"max_boxes": 30, "seeds": 1}
    with open_source(str(ten), None, None) as source:
        built = load_index(store, source, rules=rules, strict=False)
        monkeypatch.setattr("reground_jax.batch.index.build_index", None)
        again = load_index(store, source, rules=rules, strict=False)
        assert again.layouts == 10 and again.rejected == 0
        np.testing.assert_array_equal(built.offsets, again.offsets)
        assert [line.id for line in again.read(source, 8, 12) if line] == ["cat-8", "cat-9"]
    assert (tmp_path / "out/index.bin").stat().st_size == 160  # 16 bytes per line


# ---- inputs in other formats


def test_nsr1k_and_gpt4_files_become_images_of_their_ids(tmp_path):
    for name in ("counting.val.json", "gpt4.counting.json"):
        assert generate(DATA / "nsr1k" / name, tmp_path / name) == 0
        assert len(metadata(tmp_path / name)) == 12
    first = metadata(tmp_path / "gpt4.counting.json")[0]
    assert first["id"].count("-") == 1
    assert metadata(tmp_path / "counting.val.json")[0]["layout"]["phrases"][0].startswith("a ")


def test_coco_files_become_layouts_by_gligens_rules(tmp_path):
    image = {"id": 9, "file_name": "9.jpg", "width": 200, "height": 100}  # square: x 50..150
    boxes = [[0, 0, 60, 50], [60, 20, 80, 80], [100, 50, 5, 5], [60, 0, 40, 100]]
    crowds = [0, 0, 0, 1]  # the third is under 1 % of the square
    instances = {
        "images": [image, image | {"id": 10}],
        "annotations": [
            {"image_id": 9, "category_id": 1, "bbox": box, "iscrowd": crowd}
            for box, crowd in zip(boxes, crowds, strict=True)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    captions = {"annotations": [{"image_id": 9, "caption": text} for text in (" two cats\n", "no")]}
    for name, content in (("instances", instances), ("captions", captions)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    captions_file = str(tmp_path / "captions.json")
    assert generate(tmp_path / "instances.json", tmp_path / "out", "--captions", captions_file) == 0
    (made,) = metadata(tmp_path / "out")
    assert (made["id"], made["layout"]["prompt"]) == ("9", "two cats")
    assert made["layout"]["boxes"] == [[0.1, 0.2, 0.9, 1.0], [0.0, 0.0, 0.1, 0.5]]
    assert "has no caption" in (tmp_path / "out/rejected.jsonl").read_text()


def test_llm_grounded_diffusion_files_become_layouts(tmp_path):
    answers = {  # the form of that project's cache/cache_demo_v0.1_gpt-4.json
        "a blue cube above a red cube": [
            "[('a blue cube', [128, 64, 128, 128]), ('a red cube', [128, 192, 400, 128])]\n"
            "Background prompt: An indoor scene\nNegative prompt: ",
            "Objects: [('a cube', [0, 0, 512, 512])]\nBackground prompt: A room\n"
            "Negative prompt: None",
        ],
        "a table without bananas": ["[]\nBackground prompt: A room\nNegative prompt: bananas"],
        "broken": ["[('a cat', [1, 2])]\nBackground prompt: x", "no answer", "[__import__('os')]"],
    }
    (tmp_path / "lmd.json").write_text(json.dumps(answers))
    assert generate(tmp_path / "lmd.json", tmp_path / "out") == 0
    made = {row["id"]: row["layout"] for row in metadata(tmp_path / "out")}
    assert set(made) == {"0-0", "0-1", "1-0"}
    assert made["0-0"]["boxes"] == [[0.25, 0.125, 0.5, 0.375], [0.25, 0.375, 1.0, 0.625]]
    assert made["0-0"]["prompt"] == "a blue cube above a red cube"
    assert made["0-1"]["negative_prompt"] == ""
    assert (made["1-0"]["boxes"], made["1-0"]["negative_prompt"]) == ([], "bananas")
    assert len((tmp_path / "out/rejected.jsonl").read_text().splitlines()) == 3

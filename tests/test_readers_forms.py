"""The formats of layout files: how they are told apart, and what each reader makes of them."""

import json
from pathlib import Path

import pytest

from reground_jax.basics import json_text
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt, id_text
from reground_jax.readers.annotated import Annotated
from reground_jax.readers.forms import form_of, read_layouts
from reground_jax.readers.jsonl import read_jsonl

DATA = Path(__file__).parent / "data"
ANSWER = "[('a cat', [0, 0, 256, 512])]\nBackground prompt: A room\nNegative prompt: dogs"


def layouts(path: Path, form: str | None = None) -> list[Layout | Rejected]:
    entries = read_layouts(str(path), form, None)
    assert entries is not None
    return list(entries)


def write(path: Path, value: object, prefix: bytes = b"") -> Path:
    path.write_bytes(prefix + json.dumps(value).encode())
    return path


# ---- one bad record


@pytest.mark.parametrize(
    "error", [KeyError("width"), TypeError("no"), ZeroDivisionError("x"), RecursionError("deep")]
)
def test_any_exception_of_one_entry_is_a_rejection_with_its_kind(error):
    def read() -> None:
        raise error

    found = attempt("file, entry 3", read)
    assert found == Rejected("file, entry 3", f"unexpected {type(error).__name__}: {error}")


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_what_is_no_fault_of_the_entry_is_raised(error):
    def read() -> None:
        raise error

    with pytest.raises(type(error)):
        attempt("file, entry 3", read)


def test_a_reason_quotes_a_long_entry_in_part():
    def read() -> None:
        raise ValueError("x" * 10_000)

    found = attempt("", read)
    assert isinstance(found, Rejected) and len(found.reason) == 1000 and found.reason[-1] == "…"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, "7"), (7.0, "7"), ("7", "7"), (0, "0"), ("", None), (True, None), (7.5, None),
     (float("nan"), None), (float("inf"), None), (None, None), ([7], None)],
)  # fmt: skip
def test_ids_that_differ_by_type_only_are_one(value, expected):
    assert id_text(value) == expected


# ---- what a file is


@pytest.mark.parametrize(
    ("content", "form"),
    [
        ({"images": [], "annotations": [], "categories": []}, "coco"),
        ([None, {"id": 1, "prompt": "", "object_list": []}], "nsr1k"),
        ([{"id": 1, "prompt": "", "obj1": [], "obj2": []}], "nsr1k"),
        ({"a cat": [ANSWER]}, "lmd"),
        ({"a cat": ANSWER}, "lmd"),
        ({"caption": "a cat", "width": 512, "height": 512, "annos": []}, "instancediffusion"),
    ],
)
def test_a_form_is_seen_from_what_is_in_the_file(content, form):
    assert form_of(content, "x.json") == form


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        ({"width": 512, "height": 512}, "an object with 'width', 'height'"),
        ({"annotations": []}, "an object with 'annotations'"),
        ({}, "an empty object"),
        ([], "an empty list"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], "a JSON list"),
        ("text", "a JSON str"),
        (None, "a JSON NoneType"),
    ],
)
def test_a_file_of_no_form_is_one_sentence_that_names_those_that_are_read(tmp_path, content, holds):
    path = write(tmp_path / "x.json", content)
    with pytest.raises(
        ValueError, match=f"x.json holds {holds}, which is not a known form"
    ) as caught:
        layouts(path)
    for name in ("one layout per line", "COCO", "NSR-1K", "LLM-grounded", "InstanceDiffusion"):
        assert name in str(caught.value)


def test_a_json_file_is_parsed_once(monkeypatch):
    parsed = []

    def parse(text):
        parsed.append(text)
        return json_text.parse_json(text)

    monkeypatch.setattr("reground_jax.readers.parse_json", parse)
    assert len(layouts(DATA / "nsr1k/counting.val.json")) == 12
    assert len(parsed) == 1


def test_layouts_a_line_are_told_by_the_first_line_of_a_json_file(tmp_path):
    path = tmp_path / "layouts.json"
    path.write_text('{"id": "a", "prompt": "a cat"}\n{"id": "b", "prompt": "a dog"}\n')
    assert read_layouts(str(path), None, None) is None
    assert read_layouts("missing.jsonl", None, None) is None  # said when it is opened
    with pytest.raises(ValueError, match="cannot read layout file missing.json: No such file"):
        read_layouts("missing.json", None, None)


def test_a_file_of_another_form_than_is_given_is_one_sentence(tmp_path):
    path = write(tmp_path / "x.json", {"a": 1})
    for form, reason in (
        ("nsr1k", "NSR-1K file .* holds a JSON dict"),
        ("instancediffusion", "is not an object with caption and annos"),
    ):
        with pytest.raises(ValueError, match=reason):
            layouts(path, form)
    with pytest.raises(ValueError, match="LMD file .* holds a JSON list"):
        layouts(write(path, [1]), "lmd")


@pytest.mark.parametrize(
    "content",
    [
        [{"id": 1, "prompt": "a cat", "object_list": []}],
        {"a cat": [ANSWER]},
        {"caption": "a cat", "width": 512, "height": 512, "annos": []},
    ],
)
def test_a_byte_order_mark_is_read_over(tmp_path, content):
    (layout,) = layouts(write(tmp_path / "x.json", content, prefix=b"\xef\xbb\xbf"))
    assert isinstance(layout, Layout) and layout.prompt == "a cat"


# ---- NSR-1K


def test_spatial_entries_are_two_boxes_in_the_order_of_the_prompt():
    (layout,) = layouts(DATA / "cases/nsr1k-spatial/spatial.json")
    assert layout == Layout(
        "a toilet to the left of a dog",
        ["a toilet", "a dog"],
        [(0, 0.25, 0.25, 0.75), (0.5, 0.25, 0.75, 0.75)],  # the file has x, y, width, height
        id="739",
    )


def test_bad_spatial_entries_are_rejected_by_their_object(tmp_path):
    good = {"id": 1, "prompt": "x", "obj1": ["dog", [0, 0, 1, 1]], "obj2": ["cat", [0, 0, 1, 1]]}
    bad = [
        good | {"obj2": None},
        good | {"obj1": ["dog", [0, 0, 1]]},
        good | {"id": None},
        {name: good[name] for name in ("id", "prompt", "obj1")},
    ]
    *rejected, last = layouts(write(tmp_path / "x.json", [*bad, good]))
    assert isinstance(last, Layout) and last.id == "1"
    reasons = [entry.reason for entry in rejected if isinstance(entry, Rejected)]
    assert "object None of entry '1' is not [category, box]" in reasons[0]
    assert "box 1 of layout '1'" in reasons[1]
    assert "its id is None" in reasons[2]
    assert "obj1, obj2 and id (spatial)" in reasons[3]


# ---- InstanceDiffusion


def test_a_layout_of_instancediffusion_is_read():
    (layout,) = layouts(DATA / "cases/other-tools-json/instancediffusion.json")
    assert layout == Layout(
        "a dog and a car",
        ["a grey dog"],
        [(0, 51 / 512, 179 / 512, 281 / 512)],
        id="instancediffusion",
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 0}, "its width is 0"),
        ({"annos": None}, "annos is None: it must be a list"),
        ({"annos": [{"caption": "a dog", "point": [1, 2]}]}, "object 1 of annos has no bbox"),
        ({"annos": [{"caption": "a dog", "bbox": [1]}]}, "object 1 of annos: its bbox is [1]"),
        ({"annos": [{"bbox": [0, 0, 1, 1]}]}, "phrase 1 of layout 'x' is None"),
        ({"caption": None}, "prompt of layout 'x' is None"),
    ],
)
def test_a_bad_layout_of_instancediffusion_is_rejected_by_field(tmp_path, changes, reason):
    content = {"caption": "a dog", "width": 512, "height": 512, "annos": []} | changes
    (rejected,) = layouts(write(tmp_path / "x.json", content))
    assert isinstance(rejected, Rejected) and reason in rejected.reason


# ---- LLM-grounded diffusion


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "None has no 'Background prompt:'"),
        ("[('a cat', [0, 0])]\nBackground prompt: x", "its box is [0, 0]"),
        ("[('a cat', ['0', 0, 1, 1])]\nBackground prompt: x", "its box is ['0', 0, 1, 1]"),
        ("[(5, [0, 0, 9, 9])]\nBackground prompt: x", "phrase 1 of layout '0-0' is 5"),
        ("[('a cat', [600, 0, 9, 9])]\nBackground prompt: x", "it lies outside the image"),
        ("[1]\nBackground prompt: x", "is not a list of ('phrase', [x, y, width, height])"),
        ("[" * 100_000 + "Background prompt: x", "is not a list of"),
        (" " * 100_000 + "x", "has no 'Background prompt:'"),  # hours with a careless regex
    ],
)
def test_a_bad_answer_is_rejected_with_its_reason(tmp_path, answer, reason):
    rejected, good = layouts(write(tmp_path / "x.json", {"a cat": [answer, ANSWER]}), "lmd")
    assert isinstance(rejected, Rejected) and reason in rejected.reason
    assert good == Layout("a cat", ["a cat"], [(0, 0, 0.5, 1)], "dogs", "0-1")


# ---- annotated images, one per line


def test_bad_lines_of_annotated_images_are_rejected_and_the_others_are_read(tmp_path):
    good = {"image": "a.jpg", "caption": "a cat", "phrases": ["a cat"], "boxes": [[0, 0, 1, 1]]}
    changes: list[tuple[dict, str]] = [
        ({"image": None}, "image is None: it must be the path of a file"),
        ({"image": 5}, "image is 5"),
        ({"caption": None}, "caption is None: it must be a string or a list of strings"),
        ({"caption": ["a cat", 5]}, "caption is ['a cat', 5]"),
        ({"boxes": 5}, "boxes of"),
        ({"boxes": [[0, 0, 1]]}, "a box has four numbers, not 3"),
        ({"prompt": "x"}, "expected an object with"),
    ]
    lines = [json.dumps(good | change).encode() for change, _ in changes]
    lines += [b"\xff{}", b"[" * 100_000, b"", json.dumps(good).encode()]
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    *rejected, last = read_jsonl(path)
    assert isinstance(last, Annotated) and last.captions == ("a cat",)
    reasons = [entry.reason for entry in rejected if isinstance(entry, Rejected)]
    expected = [reason for _, reason in changes]
    expected += ["byte 0 is not UTF-8", "its brackets are nested too deeply"]
    assert len(reasons) == len(expected)
    for found, reason in zip(reasons, expected, strict=True):
        assert reason in found


def test_a_line_separator_inside_of_a_caption_ends_no_line(tmp_path):
    line = {"image": "a.jpg", "caption": "a cat\u2028on a mat\x85", "phrases": [], "boxes": []}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(line, ensure_ascii=False) + "\n", "utf-8")
    (entry,) = read_jsonl(path)
    assert isinstance(entry, Annotated) and entry.captions == ("a cat\u2028on a mat\x85",)

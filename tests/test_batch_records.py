"""One bad record never stops `batch`: it goes to rejected.jsonl, and the others are made."""

import json
import tracemalloc
from pathlib import Path

import pytest

from reground_jax.batch import index
from reground_jax.batch.index import build_index, open_source
from reground_jax.batch.store import open_store, write
from reground_jax.batch.verify import verify
from reground_jax.readers.lines import parse_line
from tests.batch_cases import DATA, generate, layout, metadata, refusal, rejected, write_lines

CASES = DATA / "cases"

pytestmark = pytest.mark.usefixtures("stub")


def test_half_of_a_surrogate_pair_rejects_its_line_and_the_others_are_made(tmp_path):
    assert generate(CASES / "jsonl-half-surrogate/layouts.jsonl", tmp_path / "out") == 0
    assert [row["id"] for row in metadata(tmp_path / "out")] == ["a", "c"]
    (entry,) = rejected(tmp_path / "out")
    assert entry["line"] == 2 and "b" in entry["reason"]


@pytest.mark.parametrize("field", ["id", "prompt", "negative_prompt", "phrases"])
def test_half_of_a_surrogate_pair_in_any_text_rejects_its_line(tmp_path, field):
    text = "a \ud83d"
    dirty = layout(1, **{field: [text] if field == "phrases" else text})
    lines = [json.dumps(layout(0)), json.dumps(dirty), json.dumps(layout(2))]
    source = write_lines(tmp_path / "in.jsonl", lines)
    assert generate(source, tmp_path / "out") == 0
    assert [row["id"] for row in metadata(tmp_path / "out")] == ["cat-0", "cat-2"]
    assert [entry["line"] for entry in rejected(tmp_path / "out")] == [2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[" * 100_000, "its brackets are nested too deeply"),
        ('{"id": ' * 100_000, "its brackets are nested too deeply"),
        (json.dumps(layout(1, boxes=[[0, 0, 1, 0]])).replace(" 1,", " 1" + "0" * 400 + ","), "box"),
        ('{"id": "x", "prompt": ' + "9" * 5000 + "}", "not a line of JSON: Exceeds the limit"),
        (layout(1, boxes=5), "boxes of"),
        (layout(1, boxes=[None]), "box 1 of"),
        (layout(1, phrases=5), "phrases of"),
        (layout(1, prompt=None), "prompt of"),
        (layout(1, box_format=["xyxy"]), "box_format"),
        (layout(1, seed=1.5), "seed is 1.5: a seed is an integer"),
        (layout(1, seed="1"), "seed is '1'"),
        (layout(1, seed=float("nan")), "seed is nan"),
        (layout(1, id=[1]), "id is [1]: it must be a string or a whole number"),
        (layout(1, id=1.5), "id is 1.5"),
        ({"rejected": {"a": 1}}, "{'a': 1}"),
        (5, 'has no "id"'),
        (None, 'has no "id"'),
    ],
)
def test_a_line_of_any_content_is_rejected_with_a_reason(tmp_path, line, reason):
    text = line if isinstance(line, str) else json.dumps(line)
    source = write_lines(tmp_path / "in.jsonl", [layout(0), text, layout(2)])
    assert generate(source, tmp_path / "out") == 0
    assert [row["id"] for row in metadata(tmp_path / "out")] == ["cat-0", "cat-2"]
    (entry,) = rejected(tmp_path / "out")
    assert entry["line"] == 2 and reason in entry["reason"]
    assert len(entry["text"]) <= 1000 and len(entry["reason"]) <= 1000


def test_corners_that_rounding_has_put_outside_are_read_and_larger_ones_are_not(tmp_path):
    assert generate(CASES / "box-rounding/layouts.jsonl", tmp_path / "out") == 0
    over, under = metadata(tmp_path / "out")
    assert over["layout"]["boxes"] == [[0.5, 0.1, 1.0, 0.5]]
    assert under["layout"]["boxes"] == [[0.0, 0.1, 0.5, 0.5]]
    (entry,) = rejected(tmp_path / "out")
    assert "layout 'wrong'" in entry["reason"] and "1.01" in entry["reason"]


def test_ids_and_seeds_may_be_the_floats_of_a_table_with_gaps(tmp_path):
    lines = [{"id": 1.0, "prompt": "a", "seed": 5.0}, {"id": 2, "prompt": "b", "seed": None}]
    generate(write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out")
    one, two = metadata(tmp_path / "out")
    assert (one["id"], one["seed"], two["id"]) == ("1", 5, "2")
    parsed = parse_line(json.dumps(lines[0]).encode())
    assert parsed is not None and parsed.id == "1"


def test_ids_that_differ_by_type_only_are_one_id(tmp_path, capsys):
    lines = [layout(0, id=1), layout(1, id="1"), layout(2, id=1.0)]
    message = refusal(capsys, write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out")
    assert "'1' (lines 1 and 2), '1' (lines 2 and 3)" in message


def test_the_first_line_may_begin_with_a_byte_order_mark(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [layout(0), layout(1)])
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
    assert generate(source, tmp_path / "out") == 0
    assert len(metadata(tmp_path / "out")) == 2


def test_an_empty_input_and_one_of_bad_lines_only_are_one_sentence(tmp_path, capsys):
    empty = write_lines(tmp_path / "empty.jsonl", [])
    assert "the input is empty" in refusal(capsys, empty, tmp_path / "out")
    bad = write_lines(tmp_path / "bad.jsonl", ["{", "{"])
    message = refusal(capsys, bad, tmp_path / "bad")
    assert "2 of 2 lines are not valid layouts" in message
    assert f"no line of the input is a valid layout; see {tmp_path}/bad/rejected" in message
    assert not (tmp_path / "bad/run.json").exists()  # so that a corrected file may go there


def test_coco_files_with_bad_images_are_made_but_for_those(tmp_path):
    folder = CASES / "coco-bad-image"
    captions = ["--captions", str(folder / "captions.json")]
    assert generate(folder / "instances.json", tmp_path / "out", *captions) == 0
    assert [row["id"] for row in metadata(tmp_path / "out")] == ["1", "4"]
    assert [entry["reason"] for entry in rejected(tmp_path / "out")] == [
        "image 2: its width is 0: it must be a number of pixels above 0",
        "image 3: annotation 3: its bbox is None: it must be x, y, width, height, four numbers of "
        "pixels",
    ]


def test_a_file_of_another_form_that_has_been_moved_is_the_same_input(tmp_path, capsys):
    good = {"id": 1, "prompt": "a cat", "object_list": [["cat", [0, 0, 1, 1]]]}
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.json").write_text(json.dumps([good, {"id": 2}]))
        assert generate(tmp_path / folder / "x.json", tmp_path / "out") == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nsr1k-spatial/spatial", "other-tools-json/instancediffusion"])
def test_files_of_other_tools_become_images(tmp_path, name):
    assert generate(CASES / f"{name}.json", tmp_path / "out") == 0
    assert len(metadata(tmp_path / "out")) == 1


# ---- lines of any length


def test_a_line_that_is_too_long_is_rejected_and_its_neighbors_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "LONGEST_LINE", 200)
    long = layout(1, prompt="猫" * 200)
    exact = layout(2, prompt="x")
    exact["prompt"] += "x" * (200 - len(json.dumps(exact)) - 1)  # with its line feed
    lines = [layout(0), long, "x" * 201, exact, layout(3, prompt="y" * 300)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    source.write_bytes(source.read_bytes()[:-1])  # the last one has no line feed
    assert generate(source, tmp_path / "out") == 0
    assert [row["id"] for row in metadata(tmp_path / "out")] == ["cat-0", "cat-2"]
    found = rejected(tmp_path / "out")
    assert [entry["line"] for entry in found] == [2, 3, 5]
    assert found[1]["reason"] == "the line has 202 bytes, more than the limit of 200"
    assert found[1]["text"] == "x" * 201


def test_memory_and_the_report_stay_small_for_a_line_of_200_million_bytes(tmp_path):
    source = tmp_path / "in.jsonl"
    with source.open("wb") as file:
        file.write(json.dumps(layout(0)).encode() + b"\n")
        file.truncate(200_000_000)  # zeros, which take no disk space
        file.seek(0, 2)
        file.write(b"\n" + json.dumps(layout(1)).encode() + b"\n")
    store = open_store(str(tmp_path / "out"))
    with open_source(str(source), None, None) as opened:
        tracemalloc.start()
        try:
            with store.writing("rejected.jsonl") as report:
                made = build_index(
                    opened, report, rules={"max_boxes": 30, "seeds": 1}, strict=False
                )
                lines = made.read(opened, 0, 3)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (made.layouts, made.rejected) == (2, 1)
    assert [line and line.id for line in lines] == ["cat-0", None, "cat-1"]
    assert peak < 64 << 20  # the 16 MiB that a line may have, as they are read, and a copy
    # 1000 bytes of zeros, each "\u0000" in JSON.
    assert (tmp_path / "out/rejected.jsonl").stat().st_size < 7000


# ---- the index


def corrupt(out: Path, offset: int, content: bytes) -> None:
    with (out / "index.bin").open("r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize("offset", [16, 24], ids=["where a line is", "of which id"])
def test_a_damaged_index_is_rebuilt_and_drops_no_layout(tmp_path, capsys, offset):
    out = tmp_path / "out"
    source = write_lines(tmp_path / "in.jsonl", [layout(i) for i in range(8)])
    generate(source, out)
    whole = (out / "index.bin").read_bytes()
    corrupt(out, offset, bytes(8))
    for path in (out / "images/000000000").iterdir():
        path.unlink()
    assert generate(source, out) == 0
    assert (out / "index.bin").read_bytes() == whole
    report = verify(open_store(str(out)))
    assert not report.problems and (report.images, report.expected_images) == (8, 8)


def test_a_unit_that_a_damaged_index_made_too_small_is_made_again(tmp_path):
    """Outputs of earlier versions, which trusted the index, may hold such units."""
    out = tmp_path / "out"
    source = write_lines(tmp_path / "in.jsonl", [layout(i) for i in range(8)])
    generate(source, out)
    before = (out / "images/000000000/metadata.jsonl").read_bytes()
    manifest = out / "manifests/host-0000-000000.jsonl"
    for path in (out / "images/000000000").iterdir():
        path.unlink()
    (out / "images/000000000/metadata.jsonl").write_bytes(b"x")
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    for entry in entries:
        if entry["unit"] == 0:
            entry |= {"images": 3, "bytes": 1}
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert generate(source, out) == 0
    assert (out / "images/000000000/metadata.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b"", b"[" * 100_000, b'{"facts": 5}', b'{"lines": "10"}', b"\xff", b"null"],
)
def test_an_index_description_of_any_content_is_rebuilt(ten, tmp_path, content):
    out = tmp_path / "out"
    generate(ten, out)
    whole = (out / "index.json").read_bytes()
    (out / "index.json").write_bytes(content)
    assert generate(ten, out) == 0
    assert (out / "index.json").read_bytes() == whole


@pytest.mark.parametrize("change", [-3, -16, 5, 16])
def test_an_index_of_another_length_is_rebuilt(ten, tmp_path, change):
    out = tmp_path / "out"
    generate(ten, out)
    whole = (out / "index.bin").read_bytes()
    (out / "index.bin").write_bytes(whole[:change] if change < 0 else whole + bytes(change))
    assert generate(ten, out) == 0
    assert (out / "index.bin").read_bytes() == whole


def test_an_index_without_a_checksum_is_rebuilt(ten, tmp_path):
    """As earlier versions wrote it, with the names of that time."""
    out = tmp_path / "out"
    generate(ten, out)
    description = json.loads((out / "index.json").read_text())
    assert list(description) == ["facts", "lines", "layouts", "rejected", "bytes", "index_sha256"]
    del description["index_sha256"]
    write(open_store(str(out)), "index.json", json.dumps(description, indent=1).encode())
    corrupt(out, 24, b"x")
    assert generate(ten, out) == 0
    assert "index_sha256" in json.loads((out / "index.json").read_text())
    assert not verify(open_store(str(out))).problems


def test_a_report_of_bad_lines_that_is_gone_is_rebuilt(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [layout(0), "{"])
    generate(source, tmp_path / "out")
    (tmp_path / "out/rejected.jsonl").unlink()
    generate(source, tmp_path / "out")
    assert len(rejected(tmp_path / "out")) == 1

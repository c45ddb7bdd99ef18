"""`batch-verify`: what it finds, counts and repairs, whatever an output's files contain."""

import json
import os
import shutil
from pathlib import Path

import pytest

from reground_jax.batch.manifest import read_manifests
from reground_jax.batch.store import open_store
from reground_jax.batch.verify import verify
from reground_jax.cli import main
from tests.batch_cases import files, generate, layout, refusal, write_lines

pytestmark = pytest.mark.usefixtures("stub")


@pytest.fixture(params=["imagefolder", "webdataset"])
def made(request, ten, tmp_path) -> tuple[Path, Path, list[str]]:
    """Ten layouts, their output in three units, and the options that it was made with."""
    options = ["--format", request.param]
    assert generate(ten, tmp_path / "out", *options) == 0
    return ten, tmp_path / "out", options


def flip(path: Path, offset: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def an_image(out: Path, unit: int) -> Path:
    """A file that contains an image of the unit."""
    tar = out / f"shards/{unit:09d}.tar"
    return tar if tar.exists() else sorted((out / f"images/{unit:09d}").glob("*.png"))[0]


def report(capsys, out: Path | str, *options: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = main(["batch-verify", str(out), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def test_a_whole_output_is_counted_against_the_input(made, capsys):
    _, out, _ = made
    code, found = report(capsys, out)
    assert code == 0
    assert found == {
        "out": str(out),
        "whole": True,
        "units": {"found": 3, "expected": 3},
        "images": {"found": 10, "expected": 10},
        "problems": [],
        "dropped": [],
    }


def test_damaged_units_are_dropped_by_repair_and_the_next_batch_makes_them(made, capsys):
    ten, out, options = made
    before = files(out)
    flip(an_image(out, 1), 600 if "webdataset" in options else -20)
    assert generate(ten, out, *options) == 0 and files(out) != before  # of the same size
    code, found = report(capsys, out, "--repair")
    assert code == 1 and not found["whole"]
    shard = "shards/000000001.tar" if "webdataset" in options else "images/000000001"
    assert found["dropped"] == [shard]
    (problem,) = found["problems"]
    assert problem["unit"] == 1 and problem["lines"] == [5, 8] and problem["damaged"] == shard
    assert problem["what"].startswith("checksum mismatch: ")
    assert not (out / shard).exists()
    assert generate(ten, out, *options) == 0
    assert files(out) == before
    assert report(capsys, out)[0] == 0


def test_repair_says_what_it_dropped_and_what_to_do(ten, tmp_path, capsys):
    out = tmp_path / "out"
    generate(ten, out)
    flip(an_image(out, 0))
    capsys.readouterr()
    assert main(["batch-verify", str(out)]) == 1
    printed = capsys.readouterr()
    assert "`batch-verify --repair` drops what is damaged" in printed.err
    assert printed.out == f"{out}: 1 problem; 6 of 10 images in 2 of 3 units\n"
    assert main(["batch-verify", str(out), "--repair"]) == 1
    said = capsys.readouterr().err
    assert f"dropped {out}/images/000000000\n" in said
    assert "run the same `batch` command again to make what is missing" in said


def test_repair_of_a_whole_output_does_nothing(made, capsys):
    _, out, _ = made
    before = files(out)
    code, found = report(capsys, out, "--repair")
    assert code == 0 and found["dropped"] == [] and files(out) == before


def test_repair_does_not_touch_an_output_that_is_being_made(ten, tmp_path, capsys):
    out = tmp_path / "out"
    generate(ten, out)
    flip(an_image(out, 0))
    with open_store(str(out), owner="host-0003").lock("process 7 on a"):
        assert main(["batch-verify", str(out), "--repair"]) == 2
    assert "process 7 on a" in capsys.readouterr().err
    assert (out / "images/000000000").exists()


def test_repair_works_on_an_object_store(ten, capsys):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    out = "memory://repair/out"
    try:
        assert generate(ten, out) == 0
        path = sorted(memory.glob("/repair/out/images/000000002/*.png"))[0]
        content = memory.cat_file(path)
        memory.pipe_file(path, content[:-1] + bytes([content[-1] ^ 1]))
        code, found = report(capsys, out, "--repair")
        assert code == 1 and found["dropped"] == ["images/000000002"]
        assert not memory.find("/repair/out/images/000000002")
        assert generate(ten, out) == 0
        assert report(capsys, out)[0] == 0
    finally:
        memory.store.clear()


def test_missing_units_are_reported_with_nothing_to_drop(ten, tmp_path, capsys):
    out = tmp_path / "out"
    generate(ten, out, "--host-index", "0", "--host-count", "2")
    code, found = report(capsys, out, "--repair")
    assert code == 1 and found["dropped"] == []
    assert found["units"] == {"found": 2, "expected": 3}
    assert found["problems"] == [
        {"what": "it has not been made yet", "unit": 1, "lines": [5, 8], "damaged": None}
    ]


def test_a_shard_that_no_line_asks_for_is_found(ten, tmp_path, capsys):
    """`datasets` would read it, too."""
    out = tmp_path / "out"
    generate(ten, out)
    shutil.copytree(out / "images/000000001", out / "images/000000007")
    (out / "images/notes").mkdir()  # a user's own
    code, found = report(capsys, out, "--repair")
    assert code == 1 and found["dropped"] == ["images/000000007"]
    assert "no line of the input asks for it" in found["problems"][0]["what"]
    assert report(capsys, out)[0] == 0 and (out / "images/notes").exists()


# ---- whatever the files hold


@pytest.mark.parametrize("offset", [0, 24, 159])
def test_a_damaged_index_is_found_and_the_next_batch_rebuilds_it(ten, tmp_path, capsys, offset):
    out = tmp_path / "out"
    generate(ten, out)
    flip(out / "index.bin", offset)
    code, found = report(capsys, out)
    assert code == 1 and "index.bin does not match its checksum" in found["problems"][0]["what"]
    assert found["problems"][0]["what"].endswith("run `batch` again")
    assert generate(ten, out) == 0
    assert report(capsys, out)[0] == 0


def test_a_layout_that_an_index_without_checksum_has_lost_is_found(tmp_path, capsys):
    """An output of an earlier version whose index lost a layout, and whose shard an image."""
    out = tmp_path / "out"
    source = write_lines(tmp_path / "in.jsonl", [layout(i) for i in range(8)])
    generate(source, out)
    description = json.loads((out / "index.json").read_text())
    del description["index_sha256"]
    (out / "index.json").write_text(json.dumps(description))
    assert report(capsys, out)[0] == 0  # an intact old output is valid as it is
    content = bytearray((out / "index.bin").read_bytes())
    content[24:32] = bytes(8)
    (out / "index.bin").write_bytes(content)
    code, found = report(capsys, out)
    assert code == 1
    assert "index.bin has 7 layouts, index.json 8" in found["problems"][0]["what"]


def test_an_index_of_another_input_is_found(ten, tmp_path, capsys):
    out = tmp_path / "out"
    generate(ten, out)
    other = write_lines(tmp_path / "other.jsonl", [layout(i) for i in range(7)])
    generate(other, tmp_path / "other")
    for name in ("index.json", "index.bin"):
        shutil.copy(tmp_path / "other" / name, out / name)
    code, found = report(capsys, out)
    assert (
        code == 1 and "belongs to a different input than run.json" in found["problems"][0]["what"]
    )
    assert generate(ten, out) == 0 and report(capsys, out)[0] == 0


@pytest.mark.parametrize("content", [b"{}", b"[]", b"", b"[" * 100_000, b"5", b'{"facts": []}'])
def test_an_index_description_of_any_content_is_a_problem_and_no_traceback(
    ten, tmp_path, capsys, content
):
    out = tmp_path / "out"
    generate(ten, out)
    (out / "index.json").write_bytes(content)
    code, found = report(capsys, out, "--repair")
    assert code == 1 and found["dropped"] == ["index.json"]
    assert "the index in" in found["problems"][0]["what"]
    assert generate(ten, out) == 0 and report(capsys, out)[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"unit": []}, {"unit": True}, {"unit": -1}, {"unit": 1.0}, {"path": 5}, {"path": "../out"},
        {"path": "images/000000001"}, {"images": "4"}, {"bytes": None}, {"sha256": 7}, {"more": 1},
    ],
)  # fmt: skip
def test_a_manifest_entry_of_wrong_types_counts_for_nothing(ten, tmp_path, stub, change):
    out = tmp_path / "out"
    generate(ten, out)
    before = files(out)
    manifest = out / "manifests/host-0000-000000.jsonl"
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    (first,) = [entry for entry in entries if entry["unit"] == 0]
    first |= change
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found, damaged = read_manifests(open_store(str(out)))
    assert sorted(found) == [1, 2] and damaged == 1
    assert [p.unit for p in verify(open_store(str(out))).problems] == [0]
    assert generate(ten, out) == 0 and files(out) == before


@pytest.mark.parametrize("line", ["[]", "5", "null", "[" * 100_000, '{"unit": ' + "9" * 5000 + "}"])
def test_a_manifest_line_of_any_content_counts_for_nothing(ten, tmp_path, line):
    out = tmp_path / "out"
    generate(ten, out)
    (out / "manifests/host-0000-000007.jsonl").write_text(line + "\n")
    (out / "manifests/host-0000-notes.jsonl").write_text("")  # no number of a segment
    (out / "manifests/notes").mkdir()
    assert read_manifests(open_store(str(out)))[1] == 1
    os.truncate(an_image(out, 1), 3)
    assert generate(ten, out) == 0
    assert (out / "manifests/host-0000-000008.jsonl").exists()
    assert not verify(open_store(str(out))).problems


@pytest.mark.parametrize(
    "change",
    [
        "[]", "5", "{", "[" * 100_000, {"settings": []}, {"settings": None}, {"seeds": 5},
        {"seeds": [0.5]}, {"unit_lines": "4"}, {"unit_lines": 4.5}, {"batch_size": True},
        {"quality": None}, {"wirings": [[]]}, {"gammas": [None]}, {"format": 2}, {"more": 1},
        {"shards": 5}, {"image": ["png"]},
    ],
)  # fmt: skip
def test_a_run_description_of_any_content_is_one_sentence(ten, tmp_path, capsys, change):
    out = tmp_path / "out"
    generate(ten, out)
    path = out / "run.json"
    described = json.loads(path.read_text())
    path.write_text(change if isinstance(change, str) else json.dumps(described | change))
    message = refusal(capsys, ten, out)
    assert f"error: {path}: " in message and "choose another --out" in message
    assert len(message.splitlines()) == 1
    assert main(["batch-verify", str(out)]) == 2
    assert f"error: {path}: " in capsys.readouterr().err

"""The batch generator around the model: input, index, units, shards, resuming; sampler stubbed."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reground_jax.batch.hosts import Share, find_share
from reground_jax.batch.index import load_index, open_source
from reground_jax.batch.manifest import Entry, Manifest, read_manifests
from reground_jax.batch.run import Run, read_run, seed_of
from reground_jax.batch.store import open_store
from reground_jax.batch.verify import verify
from reground_jax.cli import batch, main
from reground_jax.cli.sampling import Found
from reground_jax.images import read_recipe
from reground_jax.layout import Layout
from reground_jax.readers.lines import Line, parse_line
from reground_jax.settings import Settings
from tests.batch_cases import (
    DATA,
    files,
    generate,
    layout,
    metadata,
    refusal,
    rejected,
    write_lines,
)
from tests.batch_stub import CHECKSUM

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
        (layout(1, colour="red"), "layout field 'colour' is unknown"),
        ({"id": True, "prompt": "a cat"}, "id is True: it must be a text or a whole number"),
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
    assert "more than max_boxes=2" in reasons and "has a seed of its own" in reasons


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
    assert (tmp_path / "out/index.bin").stat().st_size == 160  # 16 bytes a line


# ---- inputs of other forms


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


# ---- what is made


def test_a_seed_is_made_of_run_seed_and_id_unless_the_line_has_one():
    line = Line(Layout("a cat", id="a7"), None)
    # echo -n "3:a7" | sha256sum gives 7aa7c2e3...
    assert seed_of(3, line) == int(hashlib.sha256(b"3:a7").hexdigest()[:8], 16)
    assert seed_of(3, line) != seed_of(4, line) != seed_of(4, Line(Layout("a cat", id="a8"), None))
    assert seed_of(3, line._replace(seed=11)) == 11


def test_every_combination_of_wirings_gammas_and_seeds_is_made_once(ten, tmp_path):
    options = ["--wirings", "sequential", "parallel", "--gammas", "0.3", "1", "--seeds", "0", "5"]
    assert generate(ten, tmp_path / "out", *options) == 0
    made = metadata(tmp_path / "out")
    assert len(made) == 10 * 2 * 2 * 2
    assert len({(row["id"], row["wiring"], row["gamma"], row["seed"]) for row in made}) == len(made)
    seeds = {row["seed"] for row in made if row["id"] == "cat-3"}
    assert len(seeds) == 2  # the same noise in all wirings and gammas
    assert {(row["wiring"], row["gamma"]) for row in made} == {
        (wiring, gamma) for wiring in ("sequential", "parallel") for gamma in (0.3, 1.0)
    }
    assert not verify(open_store(str(tmp_path / "out"))).problems


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--gammas", "1", "0.3/0/0.7"], "fractions or three parts, not both"),
        (["--gammas", "0.5", "0.50"], "gammas are .0.5, 0.5.: give each once"),
        (["--wirings", "sideways"], "wiring 'sideways' is unknown"),
        (["--seeds", "-1"], "run seed is -1"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--quality", "101"], "quality is 101"),
        (["--host-index", "0"], "--host-index and --host-count go together"),
        (["--captions", "x", "--form", "nsr1k"], "COCO's instances need a captions file"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(
    ten, tmp_path, capsys, options, reason
):
    import re

    assert re.search(reason, refusal(capsys, ten, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_metadata_and_png_say_how_an_image_was_made(ten, tmp_path):
    generate(ten, tmp_path / "out", "--gammas", "0.3/0/0.7", "--steps", "7")
    row = metadata(tmp_path / "out")[6]
    assert row["file_name"] == "000000006.png"
    assert row["settings"]["num_steps"] == 7 and row["gamma"] == [0.3, 0, 0.7]
    assert row["checksum"] == CHECKSUM and row["software"].startswith("reground-jax ")
    recipe = read_recipe(tmp_path / "out/images/000000001/000000006.png")
    assert recipe.layout == Layout.from_json(row["layout"]) and recipe.seed == row["seed"]
    assert recipe.settings.gamma == (0.3, 0, 0.7)


@pytest.mark.parametrize("image", ["png", "jpeg", "webp"])
def test_webdataset_shards_hold_image_and_json_of_a_key_side_by_side(ten, tmp_path, image):
    options = ["--format", "webdataset", "--image", image, "--seeds", "0", "1"]
    assert generate(ten, tmp_path / "out", *options) == 0
    shards = sorted((tmp_path / "out/shards").iterdir())
    assert [shard.name for shard in shards] == [f"00000000{unit}.tar" for unit in range(3)]
    with tarfile.open(shards[1]) as tar:
        names = tar.getnames()
        assert names[:2] == [f"000000004-00.{image}", "000000004-00.json"]
        assert (
            len({name.split(".")[0] for name in names}) == 8
        )  # webdataset splits at the first dot
        first = tar.extractfile(names[0])
        assert first is not None
        with Image.open(io.BytesIO(first.read())) as picture:
            assert picture.format == image.upper() and picture.size == (8, 8)
    assert not verify(open_store(str(tmp_path / "out"))).problems


def test_the_image_folder_is_read_by_the_datasets_library(tmp_path):
    pytest.importorskip("datasets")
    bare = {"phrases": [], "boxes": []}  # throughout the first unit
    lines = [layout(i, **bare if i < 4 else {}) for i in range(10)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    generate(source, tmp_path / "out", "--wirings", "sequential", "parallel")
    program = (  # the stub writes what an image is of into its pixels
        "import sys; from datasets import load_dataset\n"
        "for row in load_dataset('imagefolder', data_dir=sys.argv[1], split='train'):\n"
        "    text = f\"{row['prompt']} {row['seed']} {row['wiring']}\".encode()\n"
        "    print(row['id'], row['wiring'], row['image'].tobytes().startswith(text))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out/images")],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert sorted(result.stdout.splitlines()) == [  # its order is that of the file system
        f"cat-{i} {wiring} True" for i in range(10) for wiring in ("parallel", "sequential")
    ], result.stderr


def test_preview_draws_contact_sheets_of_the_first_lines(ten, tmp_path):
    generate(ten, tmp_path / "out", "--preview", "6", "--seeds", "0", "1")
    sheets = sorted((tmp_path / "out/preview").iterdir())
    assert [sheet.name for sheet in sheets] == ["000000000-00.png", "000000001-00.png"]
    for sheet, rows in zip(sheets, (2, 1), strict=True):  # 8 tiles in rows of 6, and 4
        with Image.open(sheet) as picture:
            assert picture.size == (6 * 256, rows * 256)


# ---- resuming


def test_the_same_command_again_makes_nothing(ten, tmp_path, stub, capsys):
    generate(ten, tmp_path / "out")
    assert generate(ten, tmp_path / "out") == 0
    assert len(stub) == 1  # no model is loaded
    assert "nothing to do: all images exist" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["imagefolder", "webdataset"])
def test_damaged_shards_and_manifests_are_found_and_made_again(ten, tmp_path, stub, form, capsys):
    out = tmp_path / "out"
    generate(ten, out, "--format", form)
    before = files(out)
    damaged = next((out / "images/000000001").glob("*.png")) if form == "imagefolder" else None
    path = damaged or out / "shards/000000001.tar"
    os.truncate(path, path.stat().st_size - 1)
    manifest = out / "manifests/host-0000-000000.jsonl"
    lines = manifest.read_text().splitlines()
    lost = json.loads(lines[-1])["unit"]
    os.truncate(manifest, manifest.stat().st_size - 9)  # half of the last line is missing
    assert len(verify(open_store(str(out))).problems) == len({1, lost})
    assert generate(ten, out, "--format", form) == 0
    assert "1 line is damaged in" in capsys.readouterr().err
    again = {prompt for group, _, _ in stub[1].enqueued for prompt in group if prompt}
    assert again == {
        f"cat {i}" for unit in {1, lost} for i in range(unit * 4, min(unit * 4 + 4, 10))
    }
    assert files(out) == before
    assert not verify(open_store(str(out))).problems


def test_verify_finds_changed_bytes_and_missing_units_and_names_the_way_out(ten, tmp_path, capsys):
    out = tmp_path / "out"
    generate(ten, out)
    image = out / "images/000000000/000000002.png"
    content = bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)
    capsys.readouterr()
    assert main(["batch-verify", str(out)]) == 1
    printed = capsys.readouterr()
    assert "unit 0 (lines 1 to 4): checksum mismatch: 000000002.png" in printed.err
    assert "1 problem; 8 of 10 images in 2 of 3 units" in printed.out
    import shutil

    shutil.rmtree(out / "images/000000000")
    assert generate(ten, out) == 0
    assert main(["batch-verify", str(out)]) == 0
    assert "whole; 10 of 10 images in 3 of 3 units" in capsys.readouterr().out


def test_a_changed_setting_model_or_input_is_refused_by_name(ten, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    generate(ten, out)
    message = refusal(capsys, ten, out, "--steps", "7", "--gammas", "0.5")
    assert "gammas [1.0] -> [0.5]; num_steps 50 -> 7" in message and "another --out" in message
    with ten.open("a") as file:
        file.write(json.dumps(layout(10)) + "\n")
    assert "input_sha256" in refusal(capsys, ten, out)
    monkeypatch.setattr(batch, "find_model", lambda *_: Found(Path("stub"), "1" * 64, {}))
    assert "checkpoint_sha256" in refusal(capsys, ten, out)


def test_the_name_of_the_model_may_change_and_the_metadata_keeps_the_first(ten, tmp_path):
    out = tmp_path / "out"
    generate(ten, out, "--model", "here")
    before = files(out)
    (out / "shards").mkdir()
    for path in (out / "images/000000002").iterdir():
        path.unlink()
    assert generate(ten, out, "--model", "/elsewhere/there") == 0
    assert files(out) == before


def test_run_json_is_read_back_equal(tmp_path):
    run = Run(
        Settings(num_steps=3), ("parallel",), ([0.3, 0, 0.7],), (0, 1), 4, 2, "webdataset", "webp",
        80, "a" * 64, "model", CHECKSUM,
    )  # fmt: skip
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run
    with pytest.raises(ValueError, match="it is no output of `batch`"):
        read_run(open_store(str(tmp_path)))


def test_a_manifest_of_many_units_is_cut_into_files_that_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("reground_jax.batch.manifest.SEGMENT", 3)
    store = open_store(str(tmp_path))
    for process in range(2):
        manifest = Manifest(store, 3)
        for number in range(4):
            unit = process * 1000 + number
            manifest.add(Entry(unit, f"images/{unit:09d}", 1, 1, ""))
    assert len(store.names("manifests")) == 4
    entries, damaged = read_manifests(store)
    assert len(entries) == 2 * 4 and damaged == 0


# ---- hosts


def test_hosts_do_their_shares_and_any_number_takes_over_what_is_missing(ten, tmp_path, stub):
    out, whole = tmp_path / "out", tmp_path / "whole"
    generate(ten, whole)
    assert generate(ten, out, "--host-index", "1", "--host-count", "2") == 0
    assert sorted(path.name for path in (out / "images").iterdir()) == ["000000001"]
    assert generate(ten, out) == 0  # one host for what two began
    assert files(out) == files(whole)
    assert len(verify(open_store(str(out))).problems) == 0


@pytest.mark.parametrize(
    "options, environment, expected",
    [
        ((None, None), {}, (0, 1, "alone")),
        ((2, 8), {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, (2, 8, "options")),
        ((None, None), {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, (1, 4, "SLURM")),
        ((None, None), {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1, "alone")),  # no srun
        ((None, 8), {"JOB_COMPLETION_INDEX": "5"}, (5, 8, "Kubernetes")),
        ((None, None), {"JOB_COMPLETION_INDEX": "5", "JOB_COMPLETIONS": "6"}, (5, 6, "Kubernetes")),
    ],
)
def test_a_share_comes_from_options_or_the_environment(options, environment, expected):
    assert find_share(options[0], options[1], environment) == Share(*expected)


@pytest.mark.parametrize(
    "options, environment, reason",
    [
        ((0, None), {}, "go together"),
        ((None, 4), {}, "go together"),
        ((4, 4), {}, "host index is 4 of 4"),
        ((None, None), {"JOB_COMPLETION_INDEX": "5"}, "give --host-count"),
    ],
)
def test_half_a_share_is_an_error(options, environment, reason):
    with pytest.raises(ValueError, match=reason):
        find_share(options[0], options[1], environment)


def test_shares_cover_every_unit_once():
    units = [unit for index in range(3) for unit in Share(index, 3, "options").of(range(10))]
    assert sorted(units) == list(range(10))


# ---- object stores


@pytest.fixture
def memory():
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()


@pytest.mark.parametrize("form", ["imagefolder", "webdataset"])
def test_an_object_store_gets_the_same_output_and_resumes(ten, tmp_path, memory, stub, form):
    generate(ten, tmp_path / "out", "--format", form)
    assert generate(ten, "memory://bucket/out", "--format", form) == 0
    there = {
        path.removeprefix("/bucket/out/"): hashlib.sha256(memory.cat_file(path)).hexdigest()
        for path in memory.find("/bucket/out")
        if path.split("/")[3] in ("images", "shards")
    }
    assert there == files(tmp_path / "out")
    assert main(["batch-verify", "memory://bucket/out"]) == 0
    lost = "images/000000001" if form == "imagefolder" else "shards/000000001.tar"
    memory.rm(f"/bucket/out/{lost}", recursive=True)
    assert main(["batch-verify", "memory://bucket/out"]) == 1
    assert generate(ten, "memory://bucket/out", "--format", form) == 0
    assert main(["batch-verify", "memory://bucket/out"]) == 0
    assert not memory.find("/bucket/out/locks")  # leases are given back


def test_the_input_may_be_in_an_object_store(ten, tmp_path, memory):
    memory.pipe_file("/bucket/in.jsonl", ten.read_bytes())
    assert generate("memory://bucket/in.jsonl", tmp_path / "out") == 0
    assert len(metadata(tmp_path / "out")) == 10


def test_a_store_without_its_package_says_what_to_install(ten, tmp_path, capsys):
    assert "cannot use nonsense://out" in refusal(capsys, ten, "nonsense://out")

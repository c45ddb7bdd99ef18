"""The batch generator around the model: what it makes, and how it resumes; sampler stubbed."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from reground_jax.batch.manifest import Entry, Manifest, read_manifests
from reground_jax.batch.run import Run, read_run, seed_of
from reground_jax.batch.store import open_store
from reground_jax.batch.verify import verify
from reground_jax.cli import batch, main
from reground_jax.cli.sampling import Found
from reground_jax.images import read_recipe
from reground_jax.layout import Layout
from reground_jax.readers.lines import Line
from reground_jax.settings import Settings
from tests.batch_cases import files, generate, layout, metadata, refusal, write_lines
from tests.batch_stub import CHECKSUM

pytestmark = pytest.mark.usefixtures("stub")

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
        (["--gammas", "0.5", "0.50"], "gammas are .0.5, 0.5.: give at least one, each once"),
        (["--wirings", "sideways"], "wiring 'sideways' is unknown"),
        (["--seeds", "-1"], "run seed is -1"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--quality", "101"], "quality is 101"),
        (["--host-index", "0"], "--host-index and --host-count go together"),
        (["--captions", "x", "--form", "nsr1k"], "COCO instances need a captions file"),
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
    program = (  # the stub encodes what an image is of in its pixels
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
    with pytest.raises(ValueError, match="it is not an output of `batch`"):
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

"""Reading annotated images, and the command that trains on them."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reground_jax.cli import main
from reground_jax.model import read_model
from reground_jax.readers import Rejected
from reground_jax.readers.annotated import crop_box, largest
from reground_jax.readers.coco import read_coco
from reground_jax.readers.jsonl import read_jsonl
from reground_jax.training import opening, stages
from reground_jax.training.trainer import Diverged
from tests.training import SIZE, tiny_recipe


# GLIGEN's arithmetic in pixels: scale the shorter side to S, crop (longer - S) / 2 at each end.
@pytest.mark.parametrize(
    ("image_size", "xywh", "expected"),
    [
        ((640, 480), (80, 0, 480, 480), (0, 0, 1, 1)),  # exactly the middle square
        ((640, 480), (0, 120, 200, 240), (0, 0.25, 0.25, 0.75)),  # cut at the left by 80 px
        ((480, 640), (240, 60, 240, 60), (0.5, 0, 1, 40 / 480)),  # cut at the top
        ((640, 480), (0, 0, 40, 100), (0, 0, 0, 100 / 480)),  # outside: no width is left
    ],
)
def test_boxes_follow_the_crop_of_the_image(image_size, xywh, expected):
    x, y, w, h = xywh
    width, height = image_size
    box = (x / width, y / height, (x + w) / width, (y + h) / height)
    assert crop_box(box, image_size) == pytest.approx(expected, abs=1e-12)


def test_the_thirty_largest_boxes_stay_and_none_under_one_percent():
    boxes = [(0.0, 0.0, 0.1 + 0.01 * i, 0.1) for i in range(40)]
    assert largest(boxes, 30) == list(range(39, 9, -1))
    small = [(0.0, 0.0, 0.1, 0.09), (0.0, 0.0, 0.2, 0.06)]  # 0.9 % and 1.2 %
    assert largest(small, 30) == [1]


@pytest.fixture
def coco(tmp_path) -> Path:
    """Four 24x16 images in COCO's format, one of them with a crowd and a tiny box."""
    rng = np.random.default_rng(0)
    images, boxes, captions = [], [], []
    for i in range(4):
        pixels = rng.integers(0, 256, (16, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 24, "height": 16})
        boxes.append({"image_id": i, "category_id": 3, "bbox": [4, 0, 8, 8], "iscrowd": 0})
        captions += [{"image_id": i, "caption": f"a cat on the {word}."} for word in "ab"]
    boxes.append({"image_id": 0, "category_id": 3, "bbox": [4, 0, 16, 16], "iscrowd": 1})
    boxes.append({"image_id": 0, "category_id": 5, "bbox": [4, 0, 1, 1], "iscrowd": 0})
    categories = [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": captions}))
    lines = [
        {"image": f"{i}.png", "caption": "a dog", "phrases": ["a dog"], "boxes": [[0, 0, 0.5, 1]]}
        for i in range(4)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    return tmp_path


def test_coco_is_read_without_crowds_and_with_all_captions(coco):
    entries = list(read_coco(coco / "instances.json", coco / "captions.json", coco))
    assert len(entries) == 4
    first = entries[0]
    assert not isinstance(first, Rejected)
    assert first.captions == ("a cat on the a.", "a cat on the b.")
    assert first.phrases == ("a cat", "a dog")
    assert first.boxes[0] == pytest.approx((4 / 24, 0, 12 / 24, 8 / 16))


def test_a_bad_line_of_jsonl_is_named(coco):
    entries = list(read_jsonl(coco / "train.jsonl"))
    assert isinstance(entries[-1], Rejected) and "line 5" in entries[-1].source
    assert sum(not isinstance(entry, Rejected) for entry in entries) == 4


@pytest.mark.slow  # a run that is killed, below, trains from JSONL, too
@pytest.mark.parametrize(("kind", "wiring"), [("coco", "sequential"), ("jsonl", "parallel")])
def test_a_folder_of_annotated_images_trains_grounding(kind, wiring, coco, base, capsys):
    source = {
        "coco": {"instances": "instances.json", "captions": "captions.json", "images": "."},
        "jsonl": {"path": "train.jsonl"},
    }[kind]
    config = {
        "source": {"kind": kind, "image_size": SIZE, **source},
        "wiring": wiring,
        "num_samples": 2,
        "recipe": dataclasses.asdict(tiny_recipe(num_steps=2)),
    }
    (coco / "config.json").write_text(json.dumps(config))
    command = ["train", "grounding", "--config", str(coco / "config.json"), "--from", str(base)]
    assert main([*command, "--out", str(coco / "run")]) == 0
    model = read_model(coco / "run" / "model")
    assert model.config.unet.grounding == "text"
    assert model.info["training"][-1]["wiring"] == wiring
    assert "changes" not in model.info["training"][-1]
    assert main([*command, "--out", str(coco / "run")]) == 2  # reported at once, not after training
    assert "already exists: that run is finished" in capsys.readouterr().err


def test_a_wrong_config_is_one_sentence(coco, base, capsys):
    (coco / "config.json").write_text('{"source": {"kind": "video"}, "recipe": {"num_step": 3}}')
    command = [
        "train",
        "grounding",
        "--config",
        str(coco / "config.json"),
        "--out",
        str(coco / "run"),
    ]
    assert main(command) == 2
    assert (
        "recipe field 'num_step' is unknown: did you mean 'num_steps'?" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (lambda: True, 0, ""),
        (lambda: False, 3, "stopped before the last step; run the same command again"),
        (KeyboardInterrupt(), 130, "run the same command again to continue from"),
        (Diverged("the loss is nan"), 1, "error: the loss is nan"),
        (ValueError("another experiment"), 2, "error: another experiment"),
    ],
)
def test_every_end_has_its_exit_code_and_sentence(end, code, told, coco, capsys, monkeypatch):
    def stage(opened, *, minutes):
        assert minutes == 1.5 and opened == {"accept_changes": True, "base": None, "fusers": None}
        if isinstance(end, BaseException):
            raise end
        return end()

    monkeypatch.setitem(stages.STAGES, "grounding", stage)
    monkeypatch.setattr(opening, "open_stage", lambda kind, config, out, **options: options)
    config = {"source": {"kind": "jsonl"}, "recipe": {"num_steps": 3, "batch_size": 4}}
    (coco / "config.json").write_text(json.dumps(config))
    command = ["train", "grounding", "--config", str(coco / "config.json"), "--out", str(coco)]
    assert main([*command, "--minutes", "1.5", "--accept-changes"]) == code
    assert told in capsys.readouterr().err
    for minutes in ("nan", "-1"):
        assert main([*command, "--minutes", minutes]) == 2
        assert "--minutes is " in capsys.readouterr().err


@pytest.fixture
def running(tmp_path):
    """Starts `reground-jax` processes; any still running when the test ends are killed."""
    program = "import sys; from reground_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with contextlib.ExitStack() as started, open(tmp_path / "stderr.txt", "w") as errors:

        def start(*arguments: str) -> subprocess.Popen:
            process = subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                env=environment, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
            started.callback(process.wait)
            started.callback(process.kill)  # callbacks run last in, first out: kill, then wait
            return process

        yield start


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_losses(kills, coco, base, running):
    """Real processes and SIGKILL at random moments."""
    # More steps than any machine completes before the kill.
    recipe = tiny_recipe(num_steps=10**7, save_every=3, sample_every=10**7)
    config = {
        "source": {"kind": "jsonl", "path": "train.jsonl", "image_size": SIZE},
        "num_samples": 2,
        "recipe": dataclasses.asdict(recipe),
    }
    (coco / "config.json").write_text(json.dumps(config))

    def start(out: str, *more: str) -> subprocess.Popen:
        command = ["train", "grounding", "--config", str(coco / "config.json"), "--from", str(base)]
        return running(*command, "--out", str(coco / out), *more)

    def losses(out: str) -> dict[int, float]:
        """Losses by step; a step that ran twice must have had the same loss both times."""
        seen: dict[int, float] = {}
        log = coco / out / "log.jsonl"
        for line in log.read_text().splitlines() if log.exists() else ():
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut off by a kill
            assert seen.setdefault(value["step"], value["loss"]) == value["loss"]
        return seen

    random = np.random.default_rng(int(base.stat().st_mtime_ns) % 2**32)
    done = 0
    for _ in range(kills):  # a run from scratch, and then resumed ones
        process = start("killed")
        # No time limit: only a process that has exited counts as failed.
        while len(losses("killed")) < done + 4:
            assert process.poll() is None, (coco / "stderr.txt").read_text()
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        done = len(losses("killed"))
    last = done + 3
    assert start("killed", "--until", str(last)).wait() == 0
    assert start("whole", "--until", str(last)).wait() == 0
    assert losses("killed") == losses("whole")
    assert len(losses("whole")) == last
    killed, whole = (read_model(coco / out / "model") for out in ("killed", "whole"))
    assert killed.info["checksum"] == whole.info["checksum"]

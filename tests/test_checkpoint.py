"""Arrays and model directories on disk: they are read back as written, or not at all."""

import dataclasses
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from reground_jax.config import TokenizerConfig
from reground_jax.convert.conversion import convert
from reground_jax.emoji.tokenizer import emoji_tokenizer
from reground_jax.emoji.world import WorldConfig
from reground_jax.model import random_params, read_model, write_model
from reground_jax.storage import checkpoint
from reground_jax.storage.checkpoint import (
    CheckpointError,
    flatten,
    load_arrays,
    save_arrays,
    unflatten,
)
from tests import reference
from tests.conftest import tiny_config

TOKENIZER, _ = emoji_tokenizer(WorldConfig())
ARRAYS = {
    "unet/0/alpha": np.array(0.5, np.float32),  # gates are 0-d
    "unet/0/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "unet/1/scale": np.arange(5).astype(np.float16),
    "vae/bias": np.array([1.5, -2.0, 3e38]).astype(ml_dtypes.bfloat16),  # beyond float16
    "vae/counts": np.arange(3, dtype=np.int32),
}


def assert_same(arrays, expected):
    assert dict(arrays).keys() == expected.keys()
    for name, array in dict(arrays).items():
        assert array.dtype == expected[name].dtype and array.shape == expected[name].shape
        np.testing.assert_array_equal(array, expected[name])


# ---- arrays


# The five arrays have 4, 96, 10, 6 and 12 bytes; an array larger than a group is its own group.
@pytest.mark.parametrize(("limit", "groups"), [(2**27, 1), (100, 2), (1, 5)])
def test_arrays_come_back_from_any_number_of_groups(tmp_path, monkeypatch, limit, groups):
    monkeypatch.setattr(checkpoint, "GROUP_BYTES", limit)
    assert save_arrays(tmp_path, ARRAYS.items()) == groups
    assert_same(load_arrays(tmp_path, groups), ARRAYS)


def test_arrays_are_written_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "GROUP_BYTES", 8)
    written = []

    def stream():
        for index in range(4):
            written.append(len(list(tmp_path.iterdir())))
            yield f"x{index}", np.zeros(2, np.float32)  # 8 bytes: a group each

    save_arrays(tmp_path, stream())
    assert written == [0, 0, 1, 2]  # a group is written when the next array does not fit


def test_flatten_and_unflatten_are_inverse():
    tree = {"unet": {"blocks": {0: {"kernel": 1}, 10: {"kernel": 2}}}, "vae": {"bias": 3}}
    flat = dict(flatten(tree))
    assert flat == {"unet/blocks/0/kernel": 1, "unet/blocks/10/kernel": 2, "vae/bias": 3}
    assert unflatten(flat.items()) == tree  # numbers are int again


# ---- model directories


@pytest.fixture(scope="module")
def config():
    return tiny_config(TokenizerConfig())


@pytest.fixture(scope="module")
def written(tmp_path_factory, config):
    """A model directory of several groups; no test changes it."""
    directory = tmp_path_factory.mktemp("model") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "GROUP_BYTES", 2**20)
        write_model(directory, config, random_params(config, 0), TOKENIZER, {"source": "random"})
    return directory


@pytest.fixture
def directory(written, tmp_path):
    """A copy of `written` to damage."""
    return Path(shutil.copytree(written, tmp_path / "model"))


def change_config(directory, change):
    path = directory / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_model_comes_back_with_its_facts(written, config):
    model = read_model(written)
    assert_same(flatten(model.params), dict(random_params(config, 0)))
    assert model.config == config and model.tokenizer_json == TOKENIZER
    assert model.info["source"] == "random" and model.info["dtype"] == "float32"
    assert json.loads((written / "config.json").read_text())["groups"] > 1


def test_place_sees_every_array_in_its_stored_dtype(written, config):
    seen = []
    read_model(written, place=lambda array: seen.append(array.dtype) or array)
    assert seen == [np.float32] * len(dict(random_params(config, 0)))


def _remove_a_group(directory):
    shutil.rmtree(directory / "arrays" / "001")


def _cut_a_file(directory):
    data = max((directory / "arrays").rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(data, data.stat().st_size // 2)


def _flip_a_byte(directory):
    data = max((directory / "arrays").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def _forget_a_group(directory):
    change_config(directory, lambda content: content.update(groups=content["groups"] - 1))


def _ask_for_another_width(directory):
    def change(content):
        content["text_encoders"][0]["network"].update(mlp_width=64)
        del content["info"]["config_checksum"]  # as in directories of earlier versions

    change_config(directory, change)


def _cut_the_config(directory):
    os.truncate(directory / "config.json", 100)


def _remove_the_config(directory):
    (directory / "config.json").unlink()


def _remove_the_tokenizer(directory):
    (directory / "tokenizer.json").unlink()


def _be_of_another_version(directory):
    change_config(directory, lambda content: content.update(format="reground-jax/99"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_a_group, r"arrays/001 is missing or damaged .*convert the checkpoint again"),
        (_cut_a_file, r"arrays/\d+ is missing or damaged|damaged \(checksum mismatch\)"),
        (_flip_a_byte, r"is missing or damaged|damaged \(checksum mismatch\); convert it again"),
        (_forget_a_group, r": \d+ missing arrays, such as"),
        (_ask_for_another_width, r"array text_encoder/layers/0/.* but its config.json requires"),
        (_cut_the_config, r"is not a model directory .*config.json is damaged"),
        (_remove_the_config, r"is not a model directory .*`reground-jax convert SOURCE"),
        (_remove_the_tokenizer, r"tokenizer.json is missing: convert it again"),
        (_be_of_another_version, r"has format 'reground-jax/99', but this version reads"),
    ],
)
def test_a_damaged_directory_is_one_clear_sentence(directory, damage, message):
    damage(directory)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_model(directory)
    assert "\n" not in str(caught.value)


def test_a_config_part_of_another_version_is_named(directory):
    change_config(directory, lambda content: content.update(controlnet={}))
    with pytest.raises(ValueError, match="another version; convert it again"):
        read_model(directory)


def test_wrong_arrays_are_refused_and_nothing_is_left(tmp_path, config):
    arrays = dict(random_params(config, 0))
    network = dataclasses.replace(config.text_encoder.network, mlp_width=24)
    text = dataclasses.replace(config.text_encoder, network=network)
    wider = dataclasses.replace(config, text_encoders=(text,))
    for other, given, message in (
        (config, list(arrays.items())[:-1], "missing arrays: vae/"),
        (config, [*arrays.items(), ("extra", np.zeros(3))], "array extra has shape .* None"),
        (wider, arrays.items(), r"has shape \(32,\), expected \(24,"),
    ):
        with pytest.raises(CheckpointError, match=message):
            write_model(tmp_path / "model", other, given, TOKENIZER, {})
        assert list(tmp_path.iterdir()) == []


def test_a_model_on_a_base_holds_only_what_differs(written, config, tmp_path):
    """Like fusers trained on a frozen model: written, moved together with the base, and read."""
    arrays = dict(flatten(read_model(written).params))
    names = [name for name in arrays if "/fuser/" in name]
    changed = arrays | {name: arrays[name] + 1 for name in names}
    shutil.copytree(written, tmp_path / "a/base")
    write_model(
        tmp_path / "a/top", config, changed.items(), TOKENIZER, {}, base=tmp_path / "a/base"
    )
    own = dict(load_arrays(tmp_path / "a/top/arrays", 1))
    assert sorted(own) == sorted(names)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert_same(flatten(read_model(tmp_path / "b/top").params), changed)
    shutil.rmtree(tmp_path / "b/base")
    with pytest.raises(CheckpointError, match="base is not a model directory"):
        read_model(tmp_path / "b/top")


def test_an_existing_destination_is_refused(written, config):
    with pytest.raises(FileExistsError, match="already exists: choose another place, or remove it"):
        write_model(written, config, random_params(config, 0), TOKENIZER, {})


def test_a_relative_path_works(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    write_model("model", config, random_params(config, 0), TOKENIZER, {})
    assert read_model("model").config == config


# ---- killed at any moment


def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path, config):
    here = platform.node()
    kept = [
        f".model.partial-1@{here}",
        f".model.partial-{dead_pid()}@elsewhere",
        ".model.partial-x",
    ]
    for name in [*kept, f".model.partial-{dead_pid()}@{here}"]:
        (tmp_path / name / "arrays").mkdir(parents=True)
    write_model(tmp_path / "model", config, random_params(config, 0), TOKENIZER, {})
    assert {path.name for path in tmp_path.iterdir()} == {"model", *kept}


CONVERT = """
import os, signal, sys
from pathlib import Path
from reground_jax.storage import checkpoint
from reground_jax.convert.conversion import convert

checkpoint.GROUP_BYTES = 2**19  # some sixteen groups, so that most of the work is writing
events = 0

def count(event, arguments):
    # Counts Python's audit events, starting when there is something on the disk.
    global events
    begun = events or (event == "os.mkdir" and ".partial-" in str(arguments[0]))
    events += bool(begun)
    if events == {moment}:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
convert({source!r}, {destination!r})
Path({destination!r}).with_suffix(".events").write_text(str(events))
"""


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_conversion_leaves_nothing_that_loads(kills, tmp_path):
    """Moments are counted in events of the process, not in seconds, which depend on the machine."""
    source = tmp_path / "source"
    reference.write_diffusers(source, "odd")
    # Processes forked from one that has imported everything, so that each takes seconds.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["reground_jax.convert.conversion", "orbax.checkpoint"])

    def run(destination: Path, moment: int = -1) -> int | None:
        """Converts up to a moment, or to the end; the exit code."""
        values = {"source": str(source), "destination": str(destination), "moment": moment}
        process = processes.Process(target=exec, args=(CONVERT.format(**values), {}))
        process.start()
        process.join()
        return process.exitcode

    assert run(tmp_path / "whole") == 0
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["groups"] > 10
    last = int((tmp_path / "whole.events").read_text())
    moments, killed, left = random.Random(0), [], 0
    for index in range(kills):
        destination = tmp_path / f"killed-{index}"
        code = run(destination, moments.randint(1, last))
        if destination.exists():  # the number of events varies with the threads
            assert read_model(destination).params
            continue
        killed.append(destination)
        assert code == -signal.SIGKILL
        partials = list(tmp_path.glob(f".{destination.name}.partial-*"))
        left += bool(partials)
        for path in [destination, *partials]:
            with pytest.raises(CheckpointError, match="is not a model directory"):
                read_model(path)
    assert min(len(killed), left) >= (kills + 1) // 2  # otherwise nothing was tested
    convert(source, killed[-1])  # the same destination works again
    assert read_model(killed[-1]).params
    assert not list(tmp_path.glob(f".{killed[-1].name}.partial-*"))

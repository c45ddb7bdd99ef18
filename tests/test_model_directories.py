"""Model directories whose arrays or base are damaged, hostile or on a full disk; and what the
checksums of their arrays find."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
import tensorstore

from reground_jax import model as models
from reground_jax.checkpoint import CheckpointError, flatten, save_arrays
from reground_jax.cli import main, sentence
from reground_jax.convert.locate import MODELS
from reground_jax.emoji.tokenizer import emoji_tokenizer
from reground_jax.emoji.world import WorldConfig
from reground_jax.facts import word_sum
from reground_jax.images import check_writable, save_png
from reground_jax.model import (
    MAX_BASES,
    nonfinite_arrays,
    random_params,
    read_description,
    read_model,
    write_model,
)
from tests.models import TINY

TOKENIZER, _ = emoji_tokenizer(WorldConfig())
ARRAYS = dict(random_params(TINY, 0))
GATE = "unet/mid_block/attentions/0/block/fuser/alpha_attn"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A model directory of one group; no test changes it."""
    directory = tmp_path_factory.mktemp("written") / "model"
    write_model(directory, TINY, ARRAYS.items(), TOKENIZER, {"source": "random"})
    return directory


@pytest.fixture
def directory(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "model"))


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    """Other arrays in the place of the model's own; what config.json says of them stays."""
    shutil.rmtree(directory / "arrays")
    save_arrays(directory / "arrays", arrays.items())


def refused(directory: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_model(directory)
    assert len(str(caught.value).splitlines()) == 1


# ---- the base


@pytest.mark.parametrize("base", [".", "../model", "./.", "../model/arrays/.."])
def test_a_model_that_stands_on_itself_is_refused(base, directory):
    edit(directory, lambda content: content.update(base=base))
    refused(directory, "its base leads back to .*: name the directory")


def test_a_model_that_stands_on_itself_by_a_link_is_refused(directory):
    (directory.parent / "link").symlink_to(directory)
    edit(directory, lambda content: content.update(base="../link"))
    refused(directory, "its base leads back to")


def test_models_that_stand_on_each_other_are_refused(directory):
    other = Path(shutil.copytree(directory, directory.parent / "other"))
    edit(directory, lambda content: content.update(base="../other"))
    edit(other, lambda content: content.update(base="../model"))
    refused(directory, "its base leads back to")


def test_a_base_may_stand_on_another_but_not_without_end(directory):
    """`--base` of a packaged model may name one that is itself written on a base."""
    folder = directory.parent
    before = dict(flatten(read_model(directory).params))
    for index in range(1, MAX_BASES + 2):
        below = folder / (f"model-{index - 1}" if index > 1 else "model")
        top = Path(shutil.copytree(directory, folder / f"model-{index}"))
        shutil.rmtree(top / "arrays")
        edit(top, lambda content, b=below: content.update(base=f"../{b.name}", groups=0))
    deepest = dict(flatten(read_model(folder / f"model-{MAX_BASES - 1}").params))
    assert all((deepest[name] == before[name]).all() for name in before)
    refused(folder / f"model-{MAX_BASES}", "stands on 8 bases or more: too many")
    refused(folder / f"model-{MAX_BASES + 1}", "stands on 8 bases or more: too many")
    with pytest.raises(CheckpointError, match="stands on 7 others: take one of them"):
        write_model(
            folder / "top", TINY, ARRAYS.items(), TOKENIZER, {},
            base=folder / f"model-{MAX_BASES - 1}",
        )  # fmt: skip


def test_a_base_may_hold_arrays_that_the_model_has_no_use_for(directory, tmp_path):
    """Plain Stable Diffusion on a grounded model; before, it was written and could not be read."""
    plain = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, grounded=False))
    arrays = dict(random_params(plain, 0)) | {
        name: array for name, array in ARRAYS.items() if name in models.leaf_shapes(plain)
    }
    write_model(tmp_path / "plain", plain, arrays.items(), TOKENIZER, {}, base=directory)
    assert read_description(tmp_path / "plain").groups == 0  # all are in the base
    assert dict(flatten(read_model(tmp_path / "plain").params)).keys() == arrays.keys()


# ---- the folder of arrays


def some_file(directory: Path, name: str) -> Path:
    return next(path for path in (directory / "arrays").rglob(name) if path.is_file())


def _pipe(directory):
    path = some_file(directory, "manifest.ocdbt")
    path.unlink()
    os.mkfifo(path)


def _device(directory):
    path = some_file(directory, "_METADATA")
    path.unlink()
    path.symlink_to("/dev/zero")


def _dangling(directory):
    path = some_file(directory, "_METADATA")
    path.unlink()
    path.symlink_to("nowhere")


def _linked_folder(directory):
    """To a place outside, of which nobody knows what is in it."""
    state = directory / "arrays" / "000" / "state"
    shutil.move(state, directory.parent / "state")
    state.symlink_to(directory.parent / "state")


def _missing_file(directory):
    shutil.rmtree(directory / "arrays" / "000" / "state" / "d", ignore_errors=True)
    for path in (directory / "arrays").rglob("d/*"):
        path.unlink()


def _missing_metadata(directory):
    some_file(directory, "_METADATA").unlink()


def _emptied(directory):
    for path in (directory / "arrays").rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def _no_arrays(directory):
    shutil.rmtree(directory / "arrays")


def _more_groups(directory):
    edit(directory, lambda content: content.update(groups=3))


def _fewer_groups(directory):
    edit(directory, lambda content: content.update(groups=0))


def _integers(directory):
    rewrite(directory, {name: array.astype(np.int8) for name, array in ARRAYS.items()})


def _complex(directory):
    rewrite(directory, {name: array.astype(np.complex64) for name, array in ARRAYS.items()})


def _dots(directory):
    rewrite(directory, ARRAYS | {"../../escaped": np.zeros(3, np.float32)})


def _slashes(directory):
    rewrite(directory, ARRAYS | {"/etc/unet": np.zeros(3, np.float32)})


def _gate_of_three(directory):
    rewrite(directory, ARRAYS | {GATE: np.zeros(3, np.float32)})


def _one_less(directory):
    rewrite(directory, {name: array for name, array in ARRAYS.items() if name != GATE})


def _no_dict(directory):
    shutil.rmtree(directory / "arrays")
    ocp.save(str(directory / "arrays" / "000"), [np.zeros(3, np.float32)])


def _nested(directory):
    shutil.rmtree(directory / "arrays")
    ocp.save(str(directory / "arrays" / "000"), {"unet": {"x": np.zeros(3, np.float32)}})


def _another_value(directory):
    rewrite(directory, ARRAYS | {GATE: np.asarray(ARRAYS[GATE] + 1)})


def _words_moved(directory):
    name = "unet/conv_in/kernel"
    moved = np.roll(ARRAYS[name].reshape(-1), 2)  # by a word of 64 bits
    rewrite(directory, ARRAYS | {name: moved.reshape(ARRAYS[name].shape)})


DAMAGE = {
    _pipe: "manifest.ocdbt is neither a file nor a folder",
    _device: "_METADATA is neither a file nor a folder",
    _dangling: "_METADATA cannot be read: No such file",
    _linked_folder: "state is neither a file nor a folder",
    _missing_file: "arrays/000 is missing or damaged",
    _missing_metadata: "arrays/000 is missing or damaged",
    _emptied: "arrays/000 is missing or damaged",
    _no_arrays: "arrays/000 is missing or damaged",
    _more_groups: "arrays/001 is missing or damaged",
    _fewer_groups: r"lacks \d+ arrays",
    _integers: "is int8, expected float16 or",
    _complex: "is complex64, expected float16 or",
    _dots: r"array ../../escaped has shape \(3,\), its config.json asks for None",
    _slashes: "array /etc/unet has shape",
    _gate_of_three: r"alpha_attn has shape \(3,\), its config.json asks for \(\)",
    _one_less: f"lacks 1 arrays, such as {GATE}",
    _no_dict: "arrays/000 is missing or damaged|holds something else",
    _nested: "arrays/000 is missing or damaged|holds something else",
    _another_value: "its arrays are damaged",
}


@pytest.mark.parametrize(
    ("damage", "message"), DAMAGE.items(), ids=[damage.__name__ for damage in DAMAGE]
)
def test_a_tampered_folder_of_arrays_is_one_sentence(damage, message, directory):
    damage(directory)
    refused(directory, message)
    assert not (directory.parent / "escaped").exists()


def test_an_array_that_claims_to_be_huge_is_refused_before_it_is_read(directory, monkeypatch):
    """A sparse one costs its writer nothing; whoever reads it ends with std::bad_alloc."""
    place = f"file://{directory}/arrays/000/state/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": place}).result()
    key = "unet/conv_in/bias/zarr.json"
    content = json.loads(store.read(key).result().value)
    content["shape"] = [10**12]
    store.write(key, json.dumps(content).encode()).result()

    def loaded(*_: object) -> None:
        raise AssertionError("the array is read")

    monkeypatch.setattr(ocp, "load", loaded)
    refused(directory, r"array unet/conv_in/bias has shape \(1000000000000,\)")


# ---- checksums of arrays


def test_swapped_words_have_equal_sums_and_are_found_by_a_check(directory, capsys):
    """What the quick sums cannot see: they are against damage, not against malice."""
    before = read_description(directory).info
    _words_moved(directory)
    read_model(directory)
    with pytest.raises(CheckpointError, match="its arrays are damaged"):
        read_model(directory, check=True)
    assert main(["info", str(directory), "--check"]) == 2
    assert "its arrays are damaged" in capsys.readouterr().err
    edit(directory, lambda content: content["info"].pop("sums"))  # as earlier versions wrote
    refused(directory, "its arrays are damaged")
    assert before["sums"] != before["checksum"]


def test_every_flipped_bit_changes_the_sum():
    array = np.random.default_rng(0).standard_normal(5).astype(np.float16)  # 10 bytes: a rest of 2
    for byte in range(array.nbytes):
        for bit in range(8):
            content = bytearray(array.tobytes())
            content[byte] ^= 1 << bit
            flipped = np.frombuffer(content, np.float16)
            assert word_sum("x", flipped) != word_sum("x", array)


def test_info_checks_the_arrays_only_when_asked(directory, capsys, monkeypatch):
    assert main(["info", str(directory), "--check"]) == 0
    assert "checked       every array is as it was written" in capsys.readouterr().out

    def read(*_: object, **__: object) -> None:
        raise AssertionError("arrays are read")

    monkeypatch.setattr(models, "load_arrays", read)
    assert main(["info", str(directory)]) == 0
    assert read_description(directory).checksum in capsys.readouterr().out


# ---- NaN


def test_arrays_with_nan_are_named(tmp_path, capsys):
    bad = {name: array.copy() for name, array in ARRAYS.items()}
    bad["unet/conv_in/kernel"][0, 0, 0, 0] = np.nan
    bad["vae/decoder/conv_in/bias"][0] = np.inf
    names = ["unet/conv_in/kernel", "vae/decoder/conv_in/bias"]
    info = write_model(tmp_path / "m", TINY, bad.items(), TOKENIZER, {})
    assert sorted(info["nonfinite"]) == names
    assert sorted(nonfinite_arrays(read_model(tmp_path / "m").params)) == names
    assert main(["info", str(tmp_path / "m")]) == 0
    assert "WARNING       NaN or infinity in unet/conv_in/kernel" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "m"), "--check"]) == 1
    assert "checked       NaN or infinity in" in capsys.readouterr().out


def test_sound_arrays_are_not_spoken_of(written, capsys):
    assert "nonfinite" not in read_description(written).info
    assert nonfinite_arrays(read_model(written).params) == []
    assert main(["info", str(written)]) == 0
    assert "WARNING" not in capsys.readouterr().out


# ---- info


def test_info_without_a_model_shows_the_default_one(capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{MODELS / 'emoji'}\n")
    assert main(["info", "emoji"]) == 0
    assert capsys.readouterr().out == shown
    assert main(["info", "emoji", "--model", "emoji-parallel"]) == 2
    assert "two models are given" in capsys.readouterr().err


def test_info_of_a_stranger_moves_no_cursor(directory, capsys):
    edit(directory, lambda content: content["info"].update(source="\x1b[2J\r\nnone"))
    assert main(["info", str(directory)]) == 0
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.splitlines())
    assert "source        ?[2J??none" in shown


# ---- disks that are full or read-only, and places that are taken


# Orbax's threads fail, too, and say so when they please.
ORBAX_THREADS = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@contextlib.contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    """The system's limit on the size of a file, which acts like a disk that fills up within one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@ORBAX_THREADS
@pytest.mark.parametrize("limit", [1000, 20_000, 100_000])  # in its metadata, and in its data
def test_a_model_on_a_full_disk_is_one_sentence_and_leaves_nothing(limit, tmp_path):
    with pytest.raises(OSError, match="File too large") as caught, files_of_at_most(limit):
        write_model(tmp_path / "model", TINY, ARRAYS.items(), TOKENIZER, {})
    assert sentence(caught.value) == f"{tmp_path}/model: File too large"
    assert list(tmp_path.iterdir()) == []


@ORBAX_THREADS
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_disk_that_is_full_at_the_end_is_one_sentence(name, tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> int:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")  # as `write` says it
        return write_bytes(path, content)

    write_bytes = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_model(tmp_path / "model", TINY, ARRAYS.items(), TOKENIZER, {})
    assert sentence(caught.value) == f"{tmp_path}/model: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_place_is_one_sentence(tmp_path, monkeypatch):
    """By a patch: root, as whom tests may run, may write anywhere."""

    def read_only(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(OSError) as caught:
        write_model(tmp_path / "model", TINY, ARRAYS.items(), TOKENIZER, {})
    assert sentence(caught.value) == f"{tmp_path}/model: Read-only file system"


def test_an_error_of_the_arrays_source_keeps_its_own_name(tmp_path):
    def source() -> Iterator[tuple[str, np.ndarray]]:
        yield next(iter(ARRAYS.items()))
        raise OSError(errno.EIO, "Input/output error", "/old/disk/model.ckpt")

    with pytest.raises(OSError) as caught:
        write_model(tmp_path / "model", TINY, source(), TOKENIZER, {})
    assert sentence(caught.value) == "/old/disk/model.ckpt: Input/output error"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_place_that_is_taken_is_kept(make, tmp_path):
    make(tmp_path / "model")
    with pytest.raises(FileExistsError, match="exists already: choose another place"):
        write_model(tmp_path / "model", TINY, ARRAYS.items(), TOKENIZER, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_could_not_be_read_back_is_not_written(tmp_path):
    text = dataclasses.replace(TINY.text_encoder, max_length=20)
    for config, tokenizer, message in (
        (dataclasses.replace(TINY, text_encoder=text), TOKENIZER, "texts are 77 tokens long"),
        (TINY, "{", "the tokenizer cannot be used"),
        (TINY, TOKENIZER.replace(":116}", ":1000}"), "1000 to .* ids end at 999"),
    ):
        with pytest.raises(ValueError, match=message):
            write_model(tmp_path / "model", config, ARRAYS.items(), tokenizer, {})
    integers = ((name, array.astype(np.int32)) for name, array in ARRAYS.items())
    with pytest.raises(CheckpointError, match="is int32, expected float16 or"):
        write_model(tmp_path / "model", TINY, integers, TOKENIZER, {})
    assert list(tmp_path.iterdir()) == []


def test_a_png_on_a_full_disk_is_one_sentence_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "image.png"
    save_png(path, np.zeros((8, 8, 3), np.uint8))
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with pytest.raises(OSError) as caught, files_of_at_most(1000):
        save_png(path, noise)
    assert sentence(caught.value) == f"{path}: File too large"
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["image.png"]


def test_a_png_where_a_folder_or_a_file_is_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "folder.png", "Is a directory"),
        (tmp_path / "file" / "image.png", "File exists|Not a directory"),
    ):
        for write in (check_writable, lambda path: save_png(path, np.zeros((8, 8, 3), np.uint8))):
            with pytest.raises(OSError) as caught:
                write(path)
            assert re.fullmatch(f"{path}: ({reason})", sentence(caught.value))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_a_png_may_have_the_longest_name_that_a_folder_takes(tmp_path):
    path = tmp_path / ("a" * 251 + ".png")
    save_png(path, np.zeros((8, 8, 3), np.uint8))
    assert path.exists()

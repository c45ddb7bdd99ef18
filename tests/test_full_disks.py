"""Full or read-only disks, and paths that exist: one sentence, and nothing is left behind."""

import contextlib
import dataclasses
import errno
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from reground_jax.cli import sentence
from reground_jax.images import check_writable, save_png
from reground_jax.model import (
    write_model,
)
from reground_jax.storage.checkpoint import CheckpointError
from tests.model_directories import ARRAYS, TOKENIZER
from tests.models import TINY

# Orbax's threads fail, too, and report it at any time.
ORBAX_THREADS = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@contextlib.contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    """Limits the size of files, which acts like a disk that fills up in the middle of one."""
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
            raise OSError(errno.ENOSPC, "No space left on device")  # as from `write`
        return write_bytes(path, content)

    write_bytes = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_model(tmp_path / "model", TINY, ARRAYS.items(), TOKENIZER, {})
    assert sentence(caught.value) == f"{tmp_path}/model: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_place_is_one_sentence(tmp_path, monkeypatch):
    """Patched, because tests may run as root, who may write anywhere."""

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
    with pytest.raises(FileExistsError, match="already exists: choose another place"):
        write_model(tmp_path / "model", TINY, ARRAYS.items(), TOKENIZER, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_could_not_be_read_back_is_not_written(tmp_path):
    network = dataclasses.replace(TINY.text_encoder.network, max_length=20)
    short = dataclasses.replace(TINY.text_encoder, network=network)
    two = TINY.text_encoders * 2
    for config, tokenizer, message in (
        (dataclasses.replace(TINY, text_encoders=(short,)), TOKENIZER, "texts are 77 tokens long"),
        (dataclasses.replace(TINY, text_encoders=two), TOKENIZER, "the model has 2 text encoders"),
        (TINY, "{", "the tokenizer cannot be used"),
        (TINY, TOKENIZER.replace(":116}", ":1000}"), "with id 1000, but ids end at 999"),
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

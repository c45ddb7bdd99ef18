"""Zips read in place; Python's zipfile writes them and is the reference."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from reground_jax.convert.pickles import load_torch
from reground_jax.convert.sources import open_tensors
from reground_jax.convert.zips import Zip
from tests.hostile.parts import program, storage, tensor

CONTENT = {"x/data.pkl": program({"a": tensor()}), "x/data/0": bytes(range(24)), "x/é": b""}


class Stream(io.BytesIO):
    """A file that cannot seek."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_) -> int:
        raise io.UnsupportedOperation

    tell = seek


def write(path: Path, comment: bytes = b"", stream: bool = False) -> Path:
    """stream: written without seeking, as torch does, so that sizes follow the contents."""
    buffer = Stream() if stream else io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = comment
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    path.write_bytes(buffer.getvalue())
    return path


def check(path: Path) -> None:
    with zipfile.ZipFile(path) as theirs, open(path, "rb") as file:
        ours = Zip(path, file)
        assert sorted(ours.entries) == sorted(theirs.namelist())
        for name in ours.entries:
            assert ours.read(name, largest=1000) == theirs.read(name)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("comment", [b"", b"a comment", b"x" * 65535])
def test_entries_are_found_where_zipfile_finds_them(tmp_path, comment, stream):
    check(write(tmp_path / "x.zip", comment, stream))


def test_numbers_of_64_bits_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # above which zipfile writes them
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    path = write(tmp_path / "x.zip")
    assert b"PK\x06\x06" in path.read_bytes()  # zip64's own end of the directory
    check(path)


def test_an_array_beyond_four_gigabytes_is_read(tmp_path):
    path = tmp_path / "x.ckpt"
    numbers = np.arange(6, dtype=np.float32)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program({"a": tensor(stored=storage("7"))}))
        archive.start_dir = 2**32 + 100  # where the next entry goes; the hole takes no disk
        archive.writestr("x/data/7", numbers.tobytes())
    array = load_torch(path)["a"]
    assert array.offset > 2**32
    np.testing.assert_array_equal(array.read(), numbers.reshape(2, 3))


@pytest.mark.parametrize("prefix", ["archive/", "a/b/", ""])
def test_the_folder_inside_may_have_any_name_or_none(tmp_path, prefix):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        for name, content in CONTENT.items():
            archive.writestr(name.replace("x/", prefix), content)
    assert open_tensors(tmp_path / "x.ckpt").shape("a") == (2, 3)

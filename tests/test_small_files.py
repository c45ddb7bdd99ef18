"""Limits on reading files that may be a stranger's."""

import os

import pytest

from reground_jax.basics.small_files import check_regular, read_small


def test_a_file_is_read_up_to_a_bound(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_small(tmp_path / "x", 5) == b"12345"
    with pytest.raises(ValueError, match="it is larger than 4 bytes"):
        read_small(tmp_path / "x", 4)


def test_a_file_that_says_it_is_empty_is_bounded_too():
    with pytest.raises(ValueError, match="it is larger than 4 bytes"):
        read_small("/proc/self/status", 4)


@pytest.mark.parametrize("read", [check_regular, lambda path: read_small(path, 4)])
def test_special_files_are_named_and_never_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "folder"), (tmp_path / "pipe", "pipe"), ("/dev/zero", "device")):
        with pytest.raises(ValueError, match=f"it is a {kind}, not a file"):
            read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")

"""Reads files that may be a stranger's: only regular files here, and only up to a limit."""

import os
import stat
from pathlib import Path

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def check_regular(path: str | Path) -> int:
    """The size of a file in bytes.

    Raises FileNotFoundError if there is none, and ValueError whose message completes "FILE cannot
    be read: " for anything else: a pipe would block forever, and a device has no end.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise ValueError(f"it is {kind}, not a file")
    return status.st_size


def read_small(path: str | Path, limit: int) -> bytes:
    """The bytes of a file.

    Raises like `check_regular`, and ValueError with a message of the same form for a file of more
    than `limit` bytes and for system errors.
    """
    size = check_regular(path)
    try:
        with open(path, "rb") as file:
            content = b"" if size > limit else file.read(limit + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if max(size, len(content)) > limit:
        raise ValueError(f"it is larger than {limit:,} bytes")
    return content


def local_path(name: str) -> Path | None:
    """The path in an untrusted string, or None if opening it might contact another machine."""
    if "\0" in name or "://" in name or name[:2] in ("//", "\\\\", "/\\", "\\/"):
        return None
    if name.startswith("~"):
        if not name.startswith("~/"):  # users may be looked up in a directory service
            return None
        try:
            return Path(name).expanduser()
        except RuntimeError:  # there is no home directory
            return None
    return Path(name)

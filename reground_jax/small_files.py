"""Files that may be a stranger's: regular files, of which no more is read than a bound."""

import stat
from pathlib import Path


def check_regular(path: Path) -> int:
    """The size of a file in bytes. Raises FileNotFoundError if there is none, and ValueError, as
    `read_small` does, for what might be read or waited for without end."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is a pipe or a device, not a file")
    return status.st_size


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a file. Raises FileNotFoundError if there is none, and ValueError whose message
    completes "FILE cannot be read: " for a folder, a pipe, a device, a file of more than `limit`
    bytes, and whatever the system refuses.
    """
    check_regular(path)
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit:,} bytes")
    return content

"""Atomic, durable writes: files and folders appear whole or not at all, and survive power loss.

Everything is written next to its destination under a hidden name, flushed to disk and renamed; then
the folder that contains it is flushed, too. System errors name the destination.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def aside(path: Path, part: Path | None = None) -> Iterator[Path]:
    """A free path next to `path` to write to: a new hidden name, or `part`.

    Creates the folder. Whatever is left of the part at the end is removed.
    """
    # Not derived from the name of `path`, which may already have the maximum length.
    part = part or path.with_name(f".{secrets.token_hex(8)}.part")
    with _blaming(path, part):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(part)
        try:
            yield part
        finally:
            remove(part)


@contextlib.contextmanager
def writing(path: Path, part: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write. It appears at `path` when the block ends, unless the block fails."""
    with aside(path, part) as place:
        with _synced(place) as file:
            yield file
        os.replace(place, path)
        _sync(path.parent)


@contextlib.contextmanager
def writing_folder(path: Path, part: Path | None = None) -> Iterator[Path]:
    """An empty folder to write files to. It replaces `path` when the block ends."""
    with aside(path, part) as place:
        place.mkdir()
        yield place
        _sync_tree(place)
        remove(path)
        os.rename(place, path)
        _sync(path.parent)


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Writes a file. Raises OSError that names `path`, as all of these functions do."""
    with writing(Path(path)) as file:
        file.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Writes text in UTF-8, with line endings as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> None:
    """Writes JSON on one line, or indented on several, with a final newline."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def create(path: Path, content: bytes, part: Path | None = None) -> bool:
    """Writes a file unless it exists; returns whether it did. Of several processes, one does."""
    with aside(path, part) as place:
        with _synced(place) as file:
            file.write(content)
        try:
            os.link(place, path)  # unlike a rename, it fails if there is a file
        except FileExistsError:
            return False
        _sync(path.parent)
        return True


def publish(part: Path, path: Path) -> None:
    """Renames a finished folder `part` to `path`, which must not exist or be an empty folder."""
    with _blaming(path, part):
        _sync_tree(part)
        os.rename(part, path)
        _sync(path.parent)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync_tree(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    windows = os.name == "nt"  # there folders cannot be flushed, and files only if opened to write
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _blaming(path: Path, part: Path) -> Iterator[None]:
    """Makes system errors name `path` if they are about the hidden part or the folders above.

    Also if they name nothing, like disk-full errors when a file is flushed or closed.
    """
    try:
        yield
    except OSError as error:
        name = error.filename
        about = isinstance(name, str) and (
            Path(name).is_relative_to(part) or path.is_relative_to(name)
        )
        if not error.strerror or not (about or name is None):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error

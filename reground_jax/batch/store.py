"""Where a run writes: a folder (`LocalStore`) or an object store (`ObjectStore`, by fsspec).

Names are relative, with "/" between parts. Whatever has a name is whole: in a folder by atomic.py,
and an object store shows an object only once it is complete.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from reground_jax.basics import atomic
from reground_jax.basics.home import expand_home
from reground_jax.batch.lock import file_lock, lease

LOCKS = "locks"
Put = Callable[[str, bytes], None]


@runtime_checkable
class Store(Protocol):
    url: str

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted; none if there is no such folder."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, or of all files of a folder; None if there is none."""
        ...

    def writing(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A file to write; it gets its name at the end, and none if there is an error."""
        ...

    def writing_folder(self, name: str) -> contextlib.AbstractContextManager[Put]:
        """A function that adds files (name, bytes) to a folder, which appears at the end."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Writes a small file unless there is one; says whether it did."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file or a folder, if there is one."""
        ...

    def lock(self, holder: str) -> contextlib.AbstractContextManager[None]:
        """Holds the owner's lock. Raises ValueError that names the holder if it is taken."""
        ...

    def remove_parts(self) -> None:
        """Removes what killed processes have left half-written. Call it while holding the lock."""
        ...


def open_store(url: str, *, owner: str = "reader") -> Store:
    """The store of a path, or of a URL that fsspec knows (gs://, s3://, memory:// ...).

    owner: who writes, as part of a file name; each of several processes needs its own.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalStore(expand_home(url), owner)
    if scheme == "file":
        return LocalStore(Path(rest), owner)
    return ObjectStore(url.rstrip("/"), owner)


def open_input(path: str) -> Any:
    """A binary file to read, on a path or by fsspec. Raises ValueError that says why it cannot."""
    try:
        if "://" in path:
            return fsspec_of(path).open(path, "rb")
        return open(expand_home(path), "rb")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error


def fsspec_of(url: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise ValueError(
            f'{url} needs fsspec: `pip install "reground-jax[stores]"`, and gcsfs for gs:// or '
            "s3fs for s3://"
        ) from error
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)[0]  # others write too
    except (ImportError, ValueError) as error:  # a protocol whose package is not there
        raise ValueError(f"cannot use {url}: {error}") from error


class LocalStore:
    def __init__(self, root: Path, owner: str):
        self.url = str(root)
        self.root = root
        self.owner = owner

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.root / folder) if name[0] != ".")
        except FileNotFoundError:
            return []

    def size(self, name: str) -> int | None:
        path = self.root / name
        if path.is_dir():
            return sum(file.stat().st_size for file in path.iterdir())
        return path.stat().st_size if path.exists() else None

    def writing(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return atomic.writing(self.root / name, self._part(name))

    @contextlib.contextmanager
    def writing_folder(self, name: str) -> Iterator[Put]:
        with atomic.writing_folder(self.root / name, self._part(name)) as folder:

            def put(file_name: str, content: bytes) -> None:
                (folder / file_name).write_bytes(content)

            yield put

    def create(self, name: str, content: bytes) -> bool:
        return atomic.create(self.root / name, content, self._part(name))

    def remove(self, name: str) -> None:
        atomic.remove(self.root / name)

    @contextlib.contextmanager
    def lock(self, holder: str) -> Iterator[None]:
        path = self.root / LOCKS / self.owner
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path, holder):
            yield

    def remove_parts(self) -> None:
        for part in self.root.rglob(".*.part"):
            owner = part.name.split(".")[-2]
            if owner == self.owner:
                atomic.remove(part)
                continue
            # Whoever has the lock of another owner is at work, and its part too.
            with contextlib.suppress(ValueError), file_lock(self.root / LOCKS / owner, self.owner):
                atomic.remove(part)

    def _part(self, name: str) -> Path:
        """Where a file or folder is written: a name that says whose it is, for `remove_parts`."""
        path = self.root / name
        return path.with_name(f".{path.name}.{self.owner}.part")


class ObjectStore:
    """Objects by fsspec. `create` and `lock` are best effort: fsspec has no atomic creation."""

    def __init__(self, url: str, owner: str):
        self.url = url
        self.owner = owner
        self.fs = fsspec_of(url)

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(self._path(name))

    def names(self, folder: str) -> list[str]:
        try:
            found = self.fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def size(self, name: str) -> int | None:
        found = self.fs.find(self._path(name), detail=True)
        return sum(info["size"] for info in found.values()) if found else None

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile() as file:  # the object is sent whole, or not at all
            yield file
            file.seek(0)
            with self.fs.open(self._path(name), "wb") as target:
                shutil.copyfileobj(file, target, 1 << 20)

    @contextlib.contextmanager
    def writing_folder(self, name: str) -> Iterator[Put]:
        # There are no folders to rename: a half-written one is known by its absence from manifests.
        yield lambda file_name, content: self.fs.pipe_file(
            self._path(f"{name}/{file_name}"), content
        )

    def create(self, name: str, content: bytes) -> bool:
        if self.fs.exists(self._path(name)):
            return False
        self.fs.pipe_file(self._path(name), content)
        return True

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self._path(name), recursive=True)

    def lock(self, holder: str) -> contextlib.AbstractContextManager[None]:
        return lease(self.fs, self._path(f"{LOCKS}/{self.owner}"), holder)

    def remove_parts(self) -> None:
        pass

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url


def write(store: Store, name: str, content: bytes | memoryview) -> None:
    with store.writing(name) as file:
        file.write(content)

"""Where a run writes: a folder (`LocalStore`) or an object store (`ObjectStore`, through fsspec).

Names are relative, with "/" between parts. Whatever has a name is complete: atomic.py ensures it in
folders, and an object store shows an object only once it is complete.
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
        """The names in a folder, sorted; empty if there is no such folder."""
        ...

    def size(self, name: str) -> int | None:
        """Size in bytes of a file, or of all files in a folder; None if it does not exist."""
        ...

    def writing(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A file to write; it gets its name at the end, or is discarded on an error."""
        ...

    def writing_folder(self, name: str) -> contextlib.AbstractContextManager[Put]:
        """A function that adds files (name, bytes) to a folder, which appears at the end."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Writes a small file unless it exists; returns whether it did."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file or a folder, if it exists."""
        ...

    def lock(self, holder: str) -> contextlib.AbstractContextManager[None]:
        """Holds the owner's lock. Raises ValueError that names the holder if it is taken."""
        ...

    def remove_parts(self) -> None:
        """Removes partial files of killed processes. Call it while holding the lock."""
        ...


def open_store(url: str, *, owner: str = "reader") -> Store:
    """The store at a path, or at a URL that fsspec supports (gs://, s3://, memory:// ...).

    owner: identifies the writer in file names; each of several processes needs its own.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalStore(expand_home(url), owner)
    if scheme == "file":
        return LocalStore(Path(rest), owner)
    return ObjectStore(url.rstrip("/"), owner)


def open_input(path: str) -> Any:
    """Opens a path or a URL of fsspec for binary reading. Raises ValueError with the reason."""
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
        return fsspec.core.url_to_fs(url, use_listings_cache=False)[0]  # other processes write too
    except (ImportError, ValueError) as error:  # the protocol's package is not installed
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
            # If another owner's lock is held, its partial files are still being written.
            with contextlib.suppress(ValueError), file_lock(self.root / LOCKS / owner, self.owner):
                atomic.remove(part)

    def _part(self, name: str) -> Path:
        """Where a file or folder is written first: its name has the owner, for `remove_parts`."""
        path = self.root / name
        return path.with_name(f".{path.name}.{self.owner}.part")


class ObjectStore:
    """Objects through fsspec. `create` and `lock` are best effort: it has no atomic creation."""

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
        with tempfile.TemporaryFile() as file:  # so that only a complete object is sent
            yield file
            file.seek(0)
            with self.fs.open(self._path(name), "wb") as target:
                shutil.copyfileobj(file, target, 1 << 20)

    @contextlib.contextmanager
    def writing_folder(self, name: str) -> Iterator[Put]:
        # There are no folders to rename: a half-written one has no entry in a manifest.
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

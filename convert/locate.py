"""Finds the model directory for a name; other checkpoints are converted once into a cache.

The models that come with the package have plain names: `BUILT_IN`.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from reground_jax.basics.home import cache_folder, expand_home, writable_cache
from reground_jax.model import is_model_directory

from .conversion import convert
from .full_disk import is_full
from .sources import resolve

MODELS = Path(str(files("reground_jax"))) / "models"
BUILT_IN = ("emoji", "emoji-parallel", "emoji-sem")  # folders of MODELS, each with a model card


def built_in(name: str | os.PathLike[str]) -> Path | None:
    """The built-in model of this name, unless the user has a file or folder of that name."""
    return MODELS / name if name in BUILT_IN and not Path(name).exists() else None


def model_directory(
    name: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None
) -> Path:
    """The model directory for a path, the name of a built-in model, or a Hub id, in this order.

    A path is a model directory, or anything that `convert` reads. Other formats are converted into
    a cache (see `home.cache_folder`), under a name that changes with their files; if several
    processes need one, the first converts it and the others use the result. Raises ValueError or
    OSError with a sentence that says what is wrong.
    """
    path = expand_home(name)
    if is_model_directory(path):
        return path
    if (found := built_in(name)) is not None:
        return found
    source = resolve(os.fspath(name))
    if source.kind == "ours":
        return source.path
    entry = f"{source.path.name}-{_fingerprint(source.path)}"
    target = cache_folder(cache) / entry
    if is_model_directory(target):  # even in a read-only cache
        return target
    writable_cache(cache)
    with _alone(target.with_name(f".{entry}.lock")):
        if not is_model_directory(target):
            _convert_into(target, name)
    return target


def _convert_into(target: Path, name: str | os.PathLike[str]) -> None:
    try:
        convert(os.fspath(name), target)
    except FileExistsError:
        if not is_model_directory(target):  # by another process, on a system without locks
            raise
    except OSError as error:
        if not is_full(error):
            raise
        sentence = "the disk is full: free some space, or choose another cache with --cache DIR"
        raise OSError(error.errno, sentence, str(target.parent)) from error


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Admits one process or thread at a time, if the system has locks; it releases a dead one's."""
    with open(path, "a") as file:
        # Windows has no fcntl, and some network file systems have no locks.
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fingerprint(path: Path) -> str:
    """Changes with the path, size or modification time of any file of a source."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    facts = [
        (str(file.resolve()), stat.st_size, stat.st_mtime_ns)
        for file in found
        if file.is_file() and (stat := file.stat())
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]

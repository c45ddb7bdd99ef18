"""Paths that depend on the home folder, which may be missing: containers run as any user id."""

import errno
import os
from pathlib import Path

NAME = "reground-jax"


def cache_folder(chosen: str | os.PathLike[str] | None = None) -> Path:
    """The folder for converted models and, in `xla`, compiled programs; it is not created.

    `chosen`, else $XDG_CACHE_HOME/reground-jax, else ~/.cache/reground-jax. Raises ValueError if
    there is neither a choice nor a home folder.
    """
    if chosen is not None:
        return expand_home(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # its specification says to ignore relative ones
        return Path(base) / NAME
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise ValueError(
            "there is no home folder to keep converted models and compiled programs in: choose a "
            "folder with --cache DIR (in Python, cache=) or the environment variable "
            "XDG_CACHE_HOME"
        )
    return Path(home) / ".cache" / NAME


def writable_cache(chosen: str | os.PathLike[str] | None = None) -> Path:
    """The cache folder, created if it is missing.

    Raises ValueError if there is no place for it, and OSError if it is not writable; both say how
    to choose another folder.
    """
    folder = cache_folder(chosen)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: the cache must be writable; choose another folder with --cache DIR "
            "(in Python, cache=) or the environment variable XDG_CACHE_HOME",
            str(folder),
        ) from error
    return folder


def expand_home(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ~ expanded. Raises ValueError if there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: no home folder was found; use the full path") from error

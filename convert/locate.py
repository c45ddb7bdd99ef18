"""From a name to a model directory: ours as it is, anything else converted once into a cache.

The models that come with the package have a plain name: `BUILT_IN`.
"""

import hashlib
import os
from pathlib import Path

import reground_jax
from reground_jax.model import is_model_directory

from .convert import convert
from .sources import resolve

CACHE = Path.home() / ".cache" / "reground-jax"
MODELS = Path(reground_jax.__file__).parent / "models"
BUILT_IN = ("emoji", "emoji-parallel")  # folders of MODELS, each with a model card


def built_in(name: str | os.PathLike[str]) -> Path | None:
    """The built-in model of this name, unless a file or folder of the user's has it."""
    return MODELS / name if name in BUILT_IN and not Path(name).exists() else None


def model_directory(name: str | os.PathLike[str], *, cache: Path = CACHE) -> Path:
    """The model directory behind a path (ours, or any that `convert` reads), the name of a built-in
    model, or a Hub id, tried in this order.

    Sources that are not ours are converted into `cache`, under a name that changes when a file of
    theirs changes. Raises ValueError or OSError with a sentence that says what is wrong.
    """
    path = Path(name).expanduser()
    if is_model_directory(path):
        return path
    if (found := built_in(name)) is not None:
        return found
    source = resolve(os.fspath(name))
    if source.kind == "ours":
        return source.path
    target = cache / f"{source.path.name}-{_fingerprint(source.path)}"
    if not is_model_directory(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        convert(os.fspath(name), target)
    return target


def _fingerprint(path: Path) -> str:
    """Changes with the place, size or time of any file of a source."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    facts = [
        (str(file.resolve()), stat.st_size, stat.st_mtime_ns)
        for file in files
        if file.is_file() and (stat := file.stat())
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]

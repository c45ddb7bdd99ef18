"""Writes and reads named arrays as Orbax checkpoints, in groups small enough to stream.

The only file that imports Orbax. Arrays have flat names ("unet/down_blocks/0/conv1/kernel"). Orbax
saves a set of arrays as a whole, so they are split into several checkpoints of at most
`GROUP_BYTES` each (or one larger array), side by side in one directory.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

GROUP_BYTES = 2**27
DTYPES = ("float16", "bfloat16", "float32", "float64")  # of a model's arrays
# System errors of failed writes; Orbax and TensorStore pass on only their text.
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
AGAIN = "convert the checkpoint again"


class CheckpointError(ValueError):
    """A directory does not contain what it should; the message says what to do."""


def save_arrays(directory: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> int:
    """Writes the arrays under `directory` as they arrive, and returns the number of groups.

    Raises OSError that names a path under `directory` if it cannot be written.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    def save(index: int, group: dict[str, np.ndarray]) -> None:
        path = str(directory.absolute() / f"{index:03}")  # Orbax rejects relative ones
        try:
            ocp.save(path, group)
        except MemoryError:
            raise
        except Exception as error:  # Orbax raises many kinds for a full disk
            raise OSError(*_reason(error), path) from error

    context = ocp.Context()
    # Compression saves only 8 % on trained weights, for a fifth of the time and half the memory.
    context.array.saving.use_compression = False
    context.memory.deepcopy_host_arrays = False  # `save` returns only after writing
    count, group, size = 0, {}, 0
    with context:
        for name, array in arrays:
            if group and size + array.nbytes > GROUP_BYTES:
                save(count, group)
                count, group, size = count + 1, {}, 0
            group[name] = array
            size += array.nbytes
        if group:
            save(count, group)
            count += 1
    return count


def load_arrays(
    directory: Path, groups: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays that `save_arrays` wrote, group by group.

    shapes: of a model's parameters by name; arrays that are not among these, have another shape or
    are not floats are refused before any memory is allocated. Raises CheckpointError if a group is
    missing, damaged, or does not match the shapes.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    for index in range(groups):
        path = directory.absolute() / f"{index:03}"
        _check_files(path)
        try:
            if shapes is not None:
                _check_arrays(path, ocp.metadata(str(path)).metadata, shapes)
            arrays = ocp.load(str(path))
        except CheckpointError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
            raise CheckpointError(
                f"{path} is missing or damaged ({type(error).__name__}): {AGAIN}"
            ) from error
        if not isinstance(arrays, dict) or not all(
            isinstance(array, np.ndarray) for array in arrays.values()
        ):
            raise CheckpointError(f"{path} does not hold named arrays: {AGAIN}")
        yield from arrays.items()
    return_freed_memory()


def _check_files(group: Path) -> None:
    """Raises CheckpointError for anything that could block or be read forever."""
    for folder, folders, files in os.walk(group):
        for path in (Path(folder, name) for name in (*folders, *files)):
            try:
                mode = path.stat().st_mode
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
            folder_link = stat.S_ISDIR(mode) and path.is_symlink()
            if folder_link or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise CheckpointError(f"{path} is neither a file nor a folder: {AGAIN}")


def _check_arrays(path: Path, found: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """`found`: the group's metadata of its arrays, by name."""
    for name, array in dict(found).items():
        if tuple(array.shape) != shapes.get(name):
            raise CheckpointError(
                f"{path}: array {name} has shape {tuple(array.shape)}, but its config.json "
                f"requires {shapes.get(name)}: {AGAIN}"
            )
        if str(np.dtype(array.dtype)) not in DTYPES:
            raise CheckpointError(
                f"{path}: array {name} is {np.dtype(array.dtype)}, expected "
                f"{' or '.join(DTYPES)}: {AGAIN}"
            )


def _reason(error: Exception) -> tuple[int, str]:
    """Number and text of the system error behind an Orbax error, or else its first line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno and cause.strerror:
            return cause.errno, cause.strerror
        cause = cause.__cause__ or cause.__context__
    for number in WRITE_ERRORS:
        if os.strerror(number) in str(error):
            return number, os.strerror(number)
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return errno.EIO, f"cannot be written ({line[:120]})"


def return_freed_memory() -> None:
    """Returns freed memory that glibc keeps, 0.4 GiB after a full-size model, to the system."""
    # Other C libraries have no malloc_trim; on Windows there is no CDLL(None).
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def flatten(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested dict by path, in dict order."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def unflatten(leaves: Iterable[tuple[str, Any]]) -> dict[Any, Any]:
    """Inverse of `flatten`; numeric path parts become int, as in lists of modules."""
    tree: dict[Any, Any] = {}
    for path, value in leaves:
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree

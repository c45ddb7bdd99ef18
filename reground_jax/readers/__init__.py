"""Readers: files in common formats -> `Layout`, or `Rejected` with the reason.

One file per format. A reader yields one value per entry and never drops one silently; what to do
with a rejected entry (stop, count, print) is the caller's choice. A file in another format raises
ValueError.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from reground_jax.basics.json_text import parse_json

LONGEST_REASON = 1000  # characters: a reason may quote the entry, which may be of any length

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Rejected:
    """An entry of a file that is not a valid layout: which one, and the reason in one sentence."""

    source: str
    reason: str


def attempt(
    source: str,
    read: Callable[Parameters, Result],
    *args: Parameters.args,
    **options: Parameters.kwargs,
) -> Result | Rejected:
    """The result of `read` for one entry, or a Rejected for any exception.

    Every reader reads its entries through this: the content of files with millions of entries is
    unpredictable, and a bad entry must not affect the others. MemoryError is raised, as it is not
    the entry's fault.
    """
    try:
        return read(*args, **options)
    except MemoryError:
        raise
    except Exception as error:
        return Rejected(source, reason_of(error))


def reason_of(error: Exception) -> str:
    """An error in one sentence; its type is added unless it is a ValueError or OSError."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif type(error) is ValueError:
        text = str(error)
    else:
        text = f"unexpected {type(error).__name__}: {error}"
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def id_text(value: object) -> str | None:
    """An id as a string: 7, 7.0 and "7" are the same. None if neither a string nor an integer."""
    if isinstance(value, str):
        return value or None
    number = whole_number(value)
    return None if number is None else str(number)


def whole_number(value: object) -> int | None:
    """7 for 7 and for 7.0, which is how pandas writes integers in a column with missing values."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_json(path: str | Path, name: str) -> Any:
    """The content of a JSON file, which errors call a `name` file. Raises ValueError."""
    try:
        return parse_json(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {name} file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(
            f"{name} file {path} is not JSON: {error}; correct it, or download it again"
        ) from None

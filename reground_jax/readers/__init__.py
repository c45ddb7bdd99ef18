"""Readers: files in common formats -> `Layout`, or `Rejected` with the reason.

One file per format. A reader yields one value per entry and never drops one silently; what to do
with a rejected entry (stop, count, print) is the caller's choice. A file of another format is a
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
    """An entry of a file that is not a valid layout: which one, and one sentence why."""

    source: str
    reason: str


def attempt(
    source: str,
    read: Callable[Parameters, Result],
    *args: Parameters.args,
    **options: Parameters.kwargs,
) -> Result | Rejected:
    """What `read` makes of one entry, or a Rejected whatever it raises.

    Every reader reads its entries through this: nobody can foresee all that files of millions of
    entries hold, and a bad entry must not cost the others. Running out of memory is not the entry's
    fault, and is raised.
    """
    try:
        return read(*args, **options)
    except MemoryError:
        raise
    except Exception as error:
        return Rejected(source, reason_of(error))


def reason_of(error: Exception) -> str:
    """One sentence of an error: a ValueError's own; of others the kind too, or they say little."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif type(error) is ValueError:
        text = str(error)
    else:
        text = f"unexpected {type(error).__name__}: {error}"
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def id_text(value: object) -> str | None:
    """An id as text: 7, 7.0 and "7" are one id. None if it is neither a text nor a whole number."""
    if isinstance(value, str):
        return value or None
    number = whole_number(value)
    return None if number is None else str(number)


def whole_number(value: object) -> int | None:
    """7 for 7 and for 7.0, which is how pandas writes the integers of a column with gaps."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_json(path: str | Path, name: str) -> Any:
    """The content of a JSON file that users know as a `name` file. Raises ValueError."""
    try:
        return parse_json(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {name} file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(
            f"{name} file {path} is not JSON: {error}; correct it, or download it again"
        ) from None

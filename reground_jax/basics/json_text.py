"""Parses JSON from other people's files: every failure is a ValueError with one short reason."""

import json
from collections import Counter
from typing import Any


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """The value of a JSON text; bytes are UTF-8, and a leading byte order mark is skipped.

    unique: refuses objects with duplicate names, of which the last would count.

    Raises ValueError whose message completes "FILE is not JSON: ", even where the json module
    raises something else (RecursionError for brackets nested too deeply).
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {error.start} is not UTF-8") from None
    try:
        hook = _unique if unique else None
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{error.msg} ({where})") from None
    except ValueError as error:  # a number with thousands of digits
        raise ValueError(str(error).split(";")[0]) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {twice[:40]!r} appears twice")
    return found

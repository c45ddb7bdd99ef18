"""JSON from files that other people wrote: every failure is a ValueError with one short reason."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8, and a byte order mark in front is skipped.

    Raises ValueError whose message completes "FILE is not JSON: ", also where the json module
    raises something else (RecursionError for brackets nested without end).
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {error.start} is not UTF-8") from None
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{error.msg} ({where})") from None
    except ValueError as error:  # a number with thousands of digits
        raise ValueError(str(error).split(";")[0]) from None

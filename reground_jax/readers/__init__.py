"""Readers: files in the forms that people have -> `Layout`, or `Rejected` with the reason.

One file per form. A reader yields one value per entry and never drops one silently; what to do with
a rejected entry (stop, count, print) is the caller's choice. A file that is not of the form at all
is a ValueError.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rejected:
    """An entry of a file that is no valid layout: which one, and one sentence why."""

    source: str
    reason: str


def read_json(path: str | Path, name: str) -> Any:
    """The content of a JSON file that users know as a `name` file. Raises ValueError."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {name} file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{name} file {path} is not JSON: {error}; download it again") from error

"""JSONL with one layout per line, the streaming format that all other formats are converted to.

    {"id": "a7", "prompt": "a cat", "phrases": ["a cat"], "boxes": [[0.1, 0.2, 0.5, 0.9]]}

"id" and "prompt" are required; the other fields of a layout, box_format ("xyxy" or "xywh") and
seed (0..2**32-1) are optional. An id may also be a whole number. Paths of pictures are relative to
the file. Lines end with a line feed.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reground_jax.basics.json_text import parse_json
from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, id_text, whole_number
from reground_jax.settings import MAX_SEED


class Line(NamedTuple):
    """The request in a line; `seed` is None if the line gives none."""

    layout: Layout
    seed: int | None

    @property
    def id(self) -> str:
        assert self.layout.id is not None  # ensured by parse_line
        return self.layout.id


def parse_line(text: bytes, folder: str | Path | None = None) -> Line | None:
    """The layout of a line, or None if it is blank. Raises ValueError that says what is wrong.

    folder: what relative paths are relative to; by default, the working directory.
    """
    if not text.strip():
        return None
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"not a line of JSON: {error}") from error
    if isinstance(value, dict) and set(value) == {"rejected"}:
        raise ValueError(str(value["rejected"]))  # the reason given by another format's reader
    if not isinstance(value, dict) or value.get("id") in (None, ""):
        raise ValueError(f'{shown(value)} has no "id": give each layout its own')
    if (name := id_text(value["id"])) is None:
        raise ValueError(f"id is {shown(value['id'])}: it must be a string or a whole number")
    given = value.pop("seed", None)
    seed = whole_number(given)
    if given is not None and not (seed is not None and 0 <= seed <= MAX_SEED):
        raise ValueError(f"seed is {shown(given)}: a seed is an integer from 0 to {MAX_SEED}")
    return Line(Layout.from_json(value | {"id": name}, folder=folder), seed)


def as_lines(entries: Iterable[Layout | Rejected], path: str) -> Iterator[str]:
    """Lines that `parse_line` reads back; a rejected entry keeps its reason.

    path: the file that the entries come from. It is left out of the lines, so that a run can resume
    after the file has been moved.
    """
    for entry in entries:
        value: dict[str, Any]
        if isinstance(entry, Rejected):
            value = {"rejected": f"{entry.source.removeprefix(f'{path}, ')}: {entry.reason}"}
        else:
            value = entry.to_json()
        yield json.dumps(value) + "\n"

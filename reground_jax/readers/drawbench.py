"""Layouts that Attention-Refocusing asked GPT-4 for (github.com/Attention-Refocusing), as JSON.

The repository holds pickles; this reads their content as a JSON list:

    {"prompt": "Two cars.", "names": ["car", "car"], "boxes": [[34, 98, 247, 264], ...]}

Boxes are x0, y0, x1, y1 in pixels of 512 x 512, one per name. As in the original, the phrase of a
name is "a " and the name, without digits and with spaces for underscores.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt, read_json
from reground_jax.readers.pixels import corner_fractions

SIDE = 512  # pixels of the image that the boxes are for


def read_drawbench(path: str | Path) -> Iterator[Layout | Rejected]:
    """The layouts of a file in order; the id is the category, if any, and the entry's number.

    Raises ValueError if the file is not in this format; an invalid entry becomes a Rejected.
    """
    yield from drawbench_layouts(read_json(path, "DrawBench"), path)


def is_drawbench(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(entry, dict) and {"prompt", "names", "boxes"} <= entry.keys()
        for entry in content
    )


def drawbench_layouts(content: Any, path: str | Path) -> Iterator[Layout | Rejected]:
    """`read_drawbench` for the parsed content of a file."""
    if not isinstance(content, list):
        raise ValueError(
            f"DrawBench file {path} holds a JSON {type(content).__name__}: expected a list of "
            "prompts with names and boxes"
        )
    for number, entry in enumerate(content):
        yield attempt(f"{path}, entry {number}", _layout, number, entry)


def _layout(number: int, entry: Any) -> Layout:
    if not isinstance(entry, dict):
        raise ValueError(f"{shown(entry)} is not an object")
    names, boxes = entry.get("names"), entry.get("boxes")
    for field, value in (("names", names), ("boxes", boxes)):
        if not isinstance(value, list):
            raise ValueError(f"its {field} are {shown(value)}: expected a list")
    assert isinstance(names, list) and isinstance(boxes, list)
    category = entry.get("category")
    return Layout(
        prompt=entry.get("prompt"),  # type: ignore[arg-type]
        phrases=[_phrase(name) for name in names],
        boxes=[corner_fractions(box, (SIDE, SIDE)) for box in boxes],
        id=f"{category}-{number}" if isinstance(category, str) else str(number),
    )


def _phrase(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"a name is {shown(name)}: it must be a string")
    return "a " + re.sub(r"\d", "", name).replace("_", " ").strip()

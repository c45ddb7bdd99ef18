"""Layouts from BoxDiff (github.com/showlab/BoxDiff, `docs/bbox_as_condition.json`).

A JSON list of images of two things, boxes in pixels of 512 x 512, x0, y0, x1, y1:

    {"filename": "a_cat_and_a_dog/13.png", "objects": {"cat": [10, 20, 200, 300], ...}}

The prompt is the folder's name, which both things are named in even if only one has a box.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt, read_json
from reground_jax.readers.pixels import corner_fractions

SIDE = 512  # pixels of the image that the boxes are for


def read_boxdiff(path: str | Path) -> Iterator[Layout | Rejected]:
    """The layouts of a file in order; the id is the file name without its suffix.

    Raises ValueError if the file is not in this format; an invalid entry becomes a Rejected.
    """
    yield from boxdiff_layouts(read_json(path, "BoxDiff"), path)


def is_boxdiff(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(entry, dict) and "filename" in entry and isinstance(entry.get("objects"), dict)
        for entry in content
    )


def boxdiff_layouts(content: Any, path: str | Path) -> Iterator[Layout | Rejected]:
    """`read_boxdiff` for the parsed content of a file."""
    if not isinstance(content, list):
        raise ValueError(
            f"BoxDiff file {path} holds a JSON {type(content).__name__}: expected a list of images"
        )
    for number, entry in enumerate(content):
        yield attempt(f"{path}, entry {number}", _layout, entry)


def _layout(entry: Any) -> Layout:
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
        raise ValueError(f"{shown(entry)} has no filename")
    objects = entry.get("objects")
    if not isinstance(objects, dict):
        raise ValueError(f"its objects are {shown(objects)}: expected an object of names and boxes")
    name = PurePosixPath(entry["filename"])
    return Layout(
        prompt=name.parent.name.replace("_", " "),
        phrases=list(objects),
        boxes=[corner_fractions(box, (SIDE, SIDE)) for box in objects.values()],
        id=str(name.with_suffix("")),
    )

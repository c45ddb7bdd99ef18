"""NSR-1K counting prompts and LayoutGPT's layouts for them (github.com/weixi-feng/LayoutGPT).

Two JSON files with the same `object_list`, and two meanings of its boxes:
    counting.val.json      ground truth from COCO, entries with `id`: x, y, width, height
    gpt4.counting.*.json   layouts by GPT-4, entries with `query_id` and `iter`: x0, y0, x1, y1
All are fractions of the image.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reground_jax.layout import Layout
from reground_jax.readers import Rejected, read_json


def read_nsr1k(path: str | Path) -> Iterator[Layout | Rejected]:
    """The layouts of one file, in its order: ids "38699" (ground truth) or "38699-1" (GPT-4).

    Raises ValueError if the file is not a JSON list; an entry that is no layout is a Rejected.
    """
    entries = read_json(path, "NSR-1K")
    if not isinstance(entries, list):
        raise ValueError(
            f"NSR-1K file {path} holds a JSON {type(entries).__name__}: expected the list of "
            "LayoutGPT's counting.val.json or gpt4.counting.*.json"
        )
    for number, entry in enumerate(entries, 1):
        try:
            yield _layout(entry)
        except ValueError as error:
            yield Rejected(source=f"{path}, entry {number}", reason=str(error))


def phrase(category: str) -> str:
    """The phrase that grounds a category, as in LayoutGPT: "a " before its name, whatever it is.

    Names are cleaned by one rule, because GPT-4 wrote variants of them ("fire-hydrant-",
    "stop_sign"): each run of "-", "_" and white space is one space, none at the ends.
    """
    return "a " + re.sub(r"[-_\s]+", " ", category).strip()


def _layout(entry: Any) -> Layout:
    match entry:
        case {"query_id": query, "iter": iteration, "prompt": prompt, "object_list": [*objects]}:
            name, box_format = f"{query}-{iteration}", "xyxy"
        case {"id": query, "prompt": prompt, "object_list": [*objects]}:
            name, box_format = f"{query}", "xywh"
        case _:
            raise ValueError(
                f"entry is {str(entry)[:80]}: expected prompt, object_list, and id (ground truth) "
                "or query_id and iter (GPT-4)"
            )
    phrases, boxes = [], []
    for pair in objects:
        match pair:
            case [str(category), [*box]] if phrase(category) != "a ":
                phrases.append(phrase(category))
                boxes.append(box)
            case _:
                raise ValueError(f"object {pair!r} of entry {name!r} is not [category, box]")
    value = {"id": name, "prompt": prompt, "phrases": phrases, "boxes": boxes}
    return Layout.from_json(value, box_format=box_format)

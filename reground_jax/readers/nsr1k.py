"""NSR-1K prompts and LayoutGPT's layouts for them (github.com/weixi-feng/LayoutGPT).

JSON lists whose entries have a prompt and objects, each a category and a box, in three forms:
    counting.val.json            `id`, `object_list`: ground truth from COCO; x, y, width, height
    spatial.{val,train}.json     `id`, `obj1`, `relation`, `obj2`: the same
    gpt4.{counting,spatial}.*    `query_id`, `iter`, `object_list`: by GPT-4; x0, y0, x1, y1
All are fractions of the image.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt, id_text, read_json


def read_nsr1k(path: str | Path) -> Iterator[Layout | Rejected]:
    """The layouts of one file in order, with ids like "38699" (ground truth) or "38699-1" (GPT-4).

    Raises ValueError if the file is not a JSON list; an invalid entry becomes a Rejected.
    """
    yield from nsr1k_layouts(read_json(path, "NSR-1K"), path)


def is_nsr1k(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(entry, dict) and ("object_list" in entry or "obj1" in entry) for entry in content
    )


def nsr1k_layouts(content: Any, path: str | Path) -> Iterator[Layout | Rejected]:
    """`read_nsr1k` for the parsed content of a file."""
    if not isinstance(content, list):
        raise ValueError(
            f"NSR-1K file {path} holds a JSON {type(content).__name__}: expected the list of "
            "LayoutGPT's counting.val.json, spatial.val.json or gpt4.*.json"
        )
    for number, entry in enumerate(content, 1):
        yield attempt(f"{path}, entry {number}", _layout, entry)


def phrase(category: str) -> str:
    """The phrase that grounds a category, as in LayoutGPT: always "a " and its name.

    Names are normalized, because GPT-4 wrote variants of them ("fire-hydrant-", "stop_sign"): each
    run of "-", "_" and whitespace becomes one space, and those at the ends are removed.
    """
    return "a " + re.sub(r"[-_\s]+", " ", category).strip()


def _layout(entry: Any) -> Layout:
    match entry:
        case {"query_id": query, "iter": iteration, "prompt": prompt, "object_list": [*objects]}:
            names, box_format = (query, iteration), "xyxy"
        case {"id": query, "prompt": prompt, "object_list": [*objects]}:
            names, box_format = (query,), "xywh"
        case {"id": query, "prompt": prompt, "obj1": first, "obj2": second}:
            names, objects, box_format = (query,), [first, second], "xywh"
        case _:
            raise ValueError(
                f"entry is {shown(entry)}: expected prompt, object_list, and id (ground truth) or "
                "query_id and iter (GPT-4), or prompt, obj1, obj2 and id (spatial)"
            )
    texts = [id_text(name) for name in names]
    if None in texts:
        raise ValueError(f"its id is {shown(query)}: it must be a whole number or a text")
    name = "-".join(map(str, texts))
    phrases, boxes = [], []
    for pair in objects:
        match pair:
            case [str(category), [*box]] if phrase(category) != "a ":
                phrases.append(phrase(category))
                boxes.append(box)
            case _:
                raise ValueError(f"object {shown(pair)} of entry {name!r} is not [category, box]")
    value = {"id": name, "prompt": prompt, "phrases": phrases, "boxes": boxes}
    return Layout.from_json(value, box_format=box_format)

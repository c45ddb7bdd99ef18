"""NSR-1K prompts and LayoutGPT's layouts for them (github.com/weixi-feng/LayoutGPT).

JSON lists whose entries have a prompt and objects, each a category and a box, in three forms:
    counting.val.json            `id`, `object_list`: ground truth from COCO; x, y, width, height
    spatial.{val,train}.json     `id`, `obj1`, `relation`, `obj2`: the same
    gpt4.{counting,spatial}.*    `query_id`, `iter`, `object_list`: by GPT-4; x0, y0, x1, y1
All are fractions of the image.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt, id_text, read_json

RELATIONS = ("left", "right", "top", "bottom", "next to")


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


def category_of(text: str) -> str:
    """The category of a phrase: the inverse of `phrase`."""
    return text.removeprefix("a ")


@dataclass(frozen=True)
class Task:
    """What an NSR-1K prompt asks for. Categories are named as `phrase` has them.

    image     id of the COCO image that it was written for
    counts    (category, count) each, of a counting prompt
    comparison  whether the prompt tells the second count only by comparison with the first
    relation  (first category, relation, second category) of a spatial prompt; the relation is one
              of RELATIONS, of the first object as seen from the second
    """

    prompt: str
    image: str | None
    counts: tuple[tuple[str, int], ...] = ()
    comparison: bool = False
    relation: tuple[str, str, str] | None = None


def read_nsr1k_tasks(path: str | Path) -> dict[str, Task]:
    """The tasks of counting.val.json or spatial.val.json, by id.

    Raises ValueError if the file has another form, or an entry is invalid.
    """
    content = read_json(path, "NSR-1K")
    if not isinstance(content, list):
        raise ValueError(f"NSR-1K file {path} is not a list: give counting or spatial.val.json")
    tasks = {}
    for number, entry in enumerate(content, 1):
        try:
            name, task = _task(entry)
        except ValueError as error:
            raise ValueError(f"{path}, entry {number}: {error}") from None
        if name in tasks:
            raise ValueError(f"{path}, entry {number}: its id {name} appears twice")
        tasks[name] = task
    return tasks


def _task(entry: Any) -> tuple[str, Task]:
    image = id_text(entry.get("image_id")) if isinstance(entry, dict) else None
    match entry:
        case {"id": query, "prompt": str(prompt), "num_object": [*told], "sub-type": str(kind)}:
            counts = tuple(_count(pair) for pair in told)
            comparison = kind == "comparison"
            if comparison and len(counts) != 2:
                raise ValueError(f"it compares {shown(told)}: expected two counts")
            task = Task(prompt, image, counts, comparison)
        case {
            "id": query, "prompt": str(prompt), "relation": str(relation),
            "obj1": [str(first), *_], "obj2": [str(second), *_],
        }:  # fmt: skip
            how = relation.removeprefix("to the ").removesuffix(" of")
            if how not in RELATIONS:
                raise ValueError(
                    f"its relation is {shown(relation)}: known are {', '.join(RELATIONS)}"
                )
            pair = (category_of(phrase(first)), how, category_of(phrase(second)))
            task = Task(prompt, image, relation=pair)
        case _:
            raise ValueError(
                f"it is {shown(entry)}: expected id, prompt, and num_object with sub-type "
                "(counting.val.json) or obj1, relation and obj2 (spatial.val.json)"
            )
    name = id_text(query)
    if name is None:
        raise ValueError(f"its id is {shown(query)}: it must be a whole number or a text")
    return name, task


def _count(pair: Any) -> tuple[str, int]:
    match pair:
        case [str(category), int(count)] if count >= 0 and not isinstance(count, bool):
            return category_of(phrase(category)), count
    raise ValueError(f"its count {shown(pair)} is not [category, whole number]")


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

"""The layouts that the emoji world is measured on, and what pictures of them must show.

The held-out set is 1,000 layouts, as package data, so that measuring needs no artwork;
`python -m reground_jax.emoji.heldout` wrote it. Real layouts are GPT-4's for NSR-1K.

The facts of a case are those of `world.Example`: "setting", "time", "setting_told" and "style",
None where nobody asked for one, and "objects" that also have an "attribute".
"""

import dataclasses
import gzip
import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from reground_jax.emoji.captions import Group
from reground_jax.emoji.categories import CATEGORIES
from reground_jax.evaluation.cases import Case
from reground_jax.layout import Layout
from reground_jax.readers import Rejected
from reground_jax.readers.nsr1k import read_nsr1k

HELDOUT = "data/heldout.json.gz"
# What the sets of cases are called in a report.
TITLES = {
    "heldout": "Held-out layouts",
    "dropped": "COCO-Drop: the boxes of half of the categories taken away",
    "nsr1k": "NSR-1K: layouts by GPT-4",
}


def grounded(layout: Layout, objects: Iterable[dict[str, Any]]) -> Layout:
    """`layout` with the phrases and boxes of the objects that have one."""
    boxed = [thing for thing in objects if thing["boxed"]]
    return dataclasses.replace(
        layout,
        phrases=[CATEGORIES[thing["category"]].phrase for thing in boxed],
        boxes=[thing["box"] for thing in boxed],
    )


def heldout_cases(count: int) -> list[Case]:
    """The first `count` of the held-out layouts. Raises ValueError if there are not so many."""
    packed = files("reground_jax.emoji").joinpath(HELDOUT).read_bytes()
    values = json.loads(gzip.decompress(packed))
    if not 1 <= count <= len(values):
        raise ValueError(f"{count} layouts are asked for: the held-out set has 1 to {len(values)}")
    return [_unpacked(value) for value in values[:count]]


def pack(cases: Sequence[Case]) -> bytes:
    """The cases as compressed JSON, the same bytes every time."""
    text = json.dumps([_packed(case) for case in cases], separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def _packed(case: Case) -> dict[str, Any]:
    fields = ("category", "attribute", "box", "boxed")
    objects = [[thing[field] for field in fields] for thing in case.facts["objects"]]
    layout = {"id": case.layout.id, "prompt": case.layout.prompt}
    return layout | case.facts | {"objects": objects}


def _unpacked(value: dict[str, Any]) -> Case:
    facts = dict(value)
    layout = Layout(prompt=facts.pop("prompt"), id=facts.pop("id"))
    facts["objects"] = [
        {"category": category, "attribute": attribute, "box": tuple(box), "boxed": boxed}
        for category, attribute, box, boxed in facts["objects"]
    ]
    return Case(grounded(layout, facts["objects"]), facts)


def with_rich_phrases(case: Case) -> Case:
    """Phrases that tell tints and poses, too: "a blue cat" in the place of "a cat"."""
    objects = [thing for thing in case.facts["objects"] if thing["boxed"]]
    phrases = [Group(t["category"], 1, t["attribute"]).say() for t in objects]
    return Case(dataclasses.replace(case.layout, phrases=phrases), case.facts)


def nsr1k_cases(path: str | Path, categories: Sequence[str]) -> list[Case]:
    """The layouts of an NSR-1K file all of whose objects are of `categories`.

    Names are read by the reader's rule ("stop_sign", "fire-hydrant-"), and as plurals too ("cats").
    Phrases are put as the model was trained ("an elephant"). Raises ValueError if none is left.
    """
    nouns = {noun: noun for noun in categories}
    nouns |= {CATEGORIES[noun].plural: noun for noun in categories}
    cases = []
    for layout in read_nsr1k(path):
        if isinstance(layout, Rejected):
            continue
        names = [nouns.get(re.sub(r"^an? ", "", phrase.lower())) for phrase in layout.phrases]
        if not names or None in names:
            continue
        objects = [
            {"category": name, "attribute": None, "box": box, "boxed": True}
            for name, box in zip(names, layout.boxes, strict=True)
        ]
        facts = {"setting": None, "time": None, "setting_told": False, "style": None}
        cases.append(Case(grounded(layout, objects), facts | {"objects": objects}))
    if not cases:
        raise ValueError(
            f"no layout of {path} has only objects that the probes know: {', '.join(categories)}"
        )
    return cases

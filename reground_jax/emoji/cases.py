"""Evaluation layouts of the emoji world, and what images of them must show.

The held-out set is 1,000 layouts in the package data, so that evaluation needs no artwork;
`python -m reground_jax.emoji.heldout` writes it. The real layouts are GPT-4's for NSR-1K.

The facts of a case are those of `world.Example`: "setting", "time", "setting_told" and "style"
(None if unspecified), and "objects", which also have an "attribute".
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


def grounded(layout: Layout, objects: Iterable[dict[str, Any]]) -> Layout:
    """`layout` with the phrases and boxes of the objects that have a box."""
    boxed = [thing for thing in objects if thing["boxed"]]
    return dataclasses.replace(
        layout,
        phrases=[CATEGORIES[thing["category"]].phrase for thing in boxed],
        boxes=[thing["box"] for thing in boxed],
    )


def heldout_cases(count: int | None = None) -> list[Case]:
    """The first `count` held-out layouts, by default all of them.

    Raises ValueError if there are fewer than that.
    """
    packed = files("reground_jax.emoji").joinpath(HELDOUT).read_bytes()
    values = json.loads(gzip.decompress(packed))
    count = len(values) if count is None else count
    if not 1 <= count <= len(values):
        raise ValueError(
            f"cannot use {count} layouts: choose 1 to {len(values)}, the size of the held-out set"
        )
    return [_unpacked(value) for value in values[:count]]


def pack(cases: Sequence[Case]) -> bytes:
    """The cases as compressed JSON, with reproducible bytes."""
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
    """Phrases that include tints and poses: "a blue cat" instead of "a cat"."""
    objects = [thing for thing in case.facts["objects"] if thing["boxed"]]
    phrases = [Group(t["category"], 1, t["attribute"]).say() for t in objects]
    return Case(dataclasses.replace(case.layout, phrases=phrases), case.facts)


def nsr1k_cases(path: str | Path, categories: Sequence[str]) -> list[Case]:
    """The layouts of an NSR-1K file whose objects are all in `categories`.

    Names are cleaned by the reader ("stop_sign", "fire-hydrant-"), and plurals are accepted
    ("cats"). Phrases are worded as in training ("an elephant"). Raises ValueError if no layout is
    left.
    """
    nouns = {noun: noun for noun in categories}
    nouns |= {CATEGORIES[noun].plural: noun for noun in categories}
    cases = []
    for layout in read_nsr1k(path):
        if isinstance(layout, Rejected):
            continue
        names = [
            nouns.get(re.sub(r"^an? ", "", phrase.lower()))
            for phrase in filter(None, layout.phrases)
        ]
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
            f"no layout in {path} has only objects that the probes know: {', '.join(categories)}"
        )
    return cases

"""What is measured on: layouts, and the facts that a picture of them must show.

The held-out set is 1,000 layouts of the emoji world, as package data, so that measuring needs no
artwork; `python -m reground_jax.evaluation.heldout` wrote it. Real layouts are GPT-4's for NSR-1K.
"""

import dataclasses
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from reground_jax.emoji.captions import Group
from reground_jax.emoji.categories import CATEGORIES
from reground_jax.layout import Layout
from reground_jax.readers import Rejected
from reground_jax.readers.nsr1k import read_nsr1k

HELDOUT = "data/heldout.json.gz"
DROP_SEED = 0  # of which boxes `with_half_the_boxes` takes away


@dataclass(frozen=True)
class Case:
    """One layout and what a picture of it must show.

    facts  as `emoji.world.Example` has them: setting, time, setting_told, style, and objects of
           {category, attribute, box, boxed}; None where nobody asked for a setting, time or style
    """

    layout: Layout
    facts: dict[str, Any]

    @property
    def counts(self) -> Counter[str]:
        """How many objects of each category the picture is to show."""
        return Counter(thing["category"] for thing in self.facts["objects"])

    def without_boxes(self, categories: Sequence[str]) -> "Case":
        """The boxes of these categories taken from the layout, and marked in the facts."""
        objects = [
            thing | {"boxed": thing["boxed"] and thing["category"] not in categories}
            for thing in self.facts["objects"]
        ]
        return Case(grounded(self.layout, objects), self.facts | {"objects": objects})

    def with_rich_phrases(self) -> "Case":
        """Phrases that tell tints and poses, too: "a blue cat" in the place of "a cat"."""
        objects = [thing for thing in self.facts["objects"] if thing["boxed"]]
        phrases = [Group(t["category"], 1, t["attribute"]).say() for t in objects]
        return Case(dataclasses.replace(self.layout, phrases=phrases), self.facts)


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
    packed = files("reground_jax.evaluation").joinpath(HELDOUT).read_bytes()
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


def with_half_the_boxes(cases: Sequence[Case]) -> list[Case]:
    """ReGround's COCO-Drop: without the boxes of half of the categories, which are still named.

    Of an odd number of categories, the smaller half goes. Cases with one category are left out.
    """
    dropped = []
    for case in cases:
        names = list(dict.fromkeys(t["category"] for t in case.facts["objects"] if t["boxed"]))
        if len(names) < 2:
            continue
        # By the name of the layout, so that a longer list drops the same boxes.
        rng = np.random.default_rng([DROP_SEED, *str(case.layout.id).encode()])
        gone = rng.permutation(len(names))[: len(names) // 2]
        dropped.append(case.without_boxes([names[i] for i in gone]))
    return dropped


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

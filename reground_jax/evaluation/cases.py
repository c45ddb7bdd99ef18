"""Evaluation cases: layouts, and what an image of each must show."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reground_jax.layout import Layout

Half = Literal["floor", "ceil", "each"]
DROP_SEED = 0  # chooses the boxes that `with_half_the_boxes` removes


@dataclass(frozen=True)
class Case:
    """A layout and what an image of it must show.

    facts  plain JSON that the scorers read. "objects" holds a dict for each object in the image:
           its "category", its "box", and whether the layout contains that box ("boxed"). Boxed
           objects are in the order of the layout's boxes. Scorers may require more fields;
           `data_sets` has those that detectors read
    """

    layout: Layout
    facts: dict[str, Any]

    @property
    def counts(self) -> Counter[str]:
        """How many objects of each category the image must show."""
        return Counter(thing["category"] for thing in self.facts["objects"])

    @property
    def unboxed(self) -> Counter[str]:
        """How many of those objects have no box in the layout."""
        return Counter(thing["category"] for thing in self.facts["objects"] if not thing["boxed"])

    def without_boxes(self, categories: Sequence[str]) -> "Case":
        """A copy without the boxes of these categories, in both the layout and the facts."""
        objects = self.facts["objects"]
        names = [thing["category"] for thing in objects if thing["boxed"]]
        layout = self.layout
        pairs = enumerate(zip(names, layout.boxes, strict=True))
        layout = layout.only([index for index, (name, _) in pairs if name not in categories])
        objects = [
            thing | {"boxed": thing["boxed"] and thing["category"] not in categories}
            for thing in objects
        ]
        return Case(layout, self.facts | {"objects": objects})


def with_half_the_boxes(cases: Sequence[Case], how: Half = "floor") -> list[Case]:
    """ReGround's COCO-Drop: removes the boxes of half the categories, which the prompt still names.

    how: of an odd number of categories, drop the smaller half ("floor") or the larger ("ceil"); or
    each category with probability 1/2, which may drop none or all ("each"). Cases with only one
    category are left out.
    """
    dropped = []
    for case in cases:
        names = list(dict.fromkeys(t["category"] for t in case.facts["objects"] if t["boxed"]))
        if len(names) < 2:
            continue
        # Seeded by the layout's id, so that a longer list drops the same boxes.
        rng = np.random.default_rng([DROP_SEED, *str(case.layout.id).encode()])
        if how == "each":
            gone = np.flatnonzero(rng.random(len(names)) < 0.5)
        else:
            count = len(names) // 2 if how == "floor" else -(-len(names) // 2)
            gone = rng.permutation(len(names))[:count]
        dropped.append(case.without_boxes([names[i] for i in gone]))
    return dropped


def seed_of(case: Case) -> int:
    """The image's seed, derived from the layout's id: the same under every condition."""
    digest = hashlib.sha256(str(case.layout.id).encode()).digest()
    return int.from_bytes(digest[:4], "big")

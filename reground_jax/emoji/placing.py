"""Object placement in the emoji world: random boxes, and boxes from real photographs."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np

from reground_jax.basics.boxes import area, iou, overlap
from reground_jax.layout_fields import Box

# Maximum share of the smaller box that another may cover: objects must stay recognizable.
MAX_COVER = 0.12
MAX_COVER_REAL = 0.2
BACKGROUND = 0.3  # maximum IoU of a background box with any object
TRIES = 40


def cover(a: Box, b: Box) -> float:
    """Intersection of two boxes, as a fraction of the smaller one's area."""
    shared = overlap(a, b)
    return shared / min(area(a), area(b)) if shared else 0.0


@cache
def real_box_sets() -> dict[int, tuple[tuple[Box, ...], ...]]:
    """Box sets from photographs, by number of boxes; box_sets.json names their source."""
    text = files("reground_jax.emoji").joinpath("box_sets.json").read_text("utf-8")
    sets: dict[int, list[tuple[Box, ...]]] = {}
    for boxes in json.loads(text)["box_sets"]:
        floats = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in boxes)
        sets.setdefault(len(boxes), []).append(floats)
    return {count: tuple(found) for count, found in sets.items()}


def real_boxes(count: int, rng: np.random.Generator) -> list[Box]:
    """One real set of `count` boxes, mirrored half of the time; [] if there is none."""
    sets = real_box_sets().get(count)
    if not sets:
        return []
    boxes = sets[rng.integers(len(sets))]
    if rng.random() < 0.5:
        boxes = tuple((1 - x1, y0, 1 - x0, y1) for x0, y0, x1, y1 in boxes)
    return list(boxes)


def random_boxes(aspects: Sequence[float], rng: np.random.Generator, *, least: float) -> list[Box]:
    """One box per aspect ratio (width / height), with little overlap; in fractions of the image.

    least  minimum geometric mean of a box's sides. Boxes that find no room are omitted, so the
           result may be shorter than `aspects`, but holds at least one box.
    """
    most = max(least * 1.02, {1: 0.8, 2: 0.6, 3: 0.48}.get(len(aspects), 0.4))
    boxes: list[Box] = []
    for aspect in aspects:
        for attempt in range(TRIES):
            side = rng.uniform(least, most - (most - least) * attempt / TRIES)
            stretch = float(np.sqrt(aspect)) * rng.uniform(0.85, 1.18)
            width, height = min(side * stretch, 0.98), min(side / stretch, 0.98)
            x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
            box = (x, y, x + width, y + height)
            if all(cover(box, other) <= MAX_COVER for other in boxes):
                boxes.append(box)
                break
    return boxes


def background_box(boxes: Sequence[Box], rng: np.random.Generator, tries: int = 10) -> Box | None:
    """A box that overlaps objects little or not at all; None if `tries` attempts find none."""
    for _ in range(tries):
        width, height = rng.uniform(0.25, 0.6, 2)
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        box = (float(x), float(y), float(x + width), float(y + height))
        if iou(np.array(box), np.array(boxes)).max() <= BACKGROUND:
            return box
    return None

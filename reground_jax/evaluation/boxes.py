"""Boxes that are found in an image, against those that are wanted. All xyxy, in fractions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from reground_jax.layout import Box

FAINT = 0.05  # score below which a cell finds nothing: average precision needs weak ones, too
BACKGROUND = 0.3  # largest IoU of a box on no object with any object
SAME_OBJECT = 0.5  # IoU from which the weaker of two detections is a second look at one object


class Detection(NamedTuple):
    category: str
    score: float
    box: Box


def area(box: Box) -> float:
    x0, y0, x1, y1 = box
    return (x1 - x0) * (y1 - y0)


def iou(box: Float[np.ndarray, "4"], others: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N"]:
    """Intersection over union of one box with each of the others; 0 where both are empty."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def strongest(
    scores: Float[np.ndarray, "h w N"], edges: Float[np.ndarray, "h w 4"], names: Sequence[str]
) -> list[Detection]:
    """One detection per object from every cell's scores and box, strongest first.

    An object has one category: of two detections in one place the weaker goes, whatever it is.
    """
    categories, best = scores.argmax(-1).ravel(), scores.max(-1).ravel()
    boxes = np.clip(edges.reshape(-1, 4), 0, 1)
    order = [i for i in np.argsort(-best, kind="stable") if best[i] >= FAINT]
    kept: list[int] = []
    for i in order:
        if not kept or iou(boxes[i], boxes[kept]).max() < SAME_OBJECT:
            kept.append(int(i))
    return [Detection(names[int(categories[i])], float(best[i]), _box(boxes[i])) for i in kept]


def _box(values: np.ndarray) -> Box:
    x0, y0, x1, y1 = (round(float(value), 4) for value in values)
    return x0, y0, x1, y1


def hits(
    found: Sequence[Detection], wanted: Sequence[tuple[str, Box]], *, least: float = 0.5
) -> list[bool]:
    """For each detection whether it shows an object that is wanted, as PASCAL VOC matches them.

    Strongest first, a detection takes the wanted object of its category with the largest IoU, if
    that is at least `least`; a second detection of the same object is a miss.
    """
    free = [True] * len(wanted)
    result = [False] * len(found)
    for i in sorted(range(len(found)), key=lambda i: -found[i].score):
        same = [j for j, (category, _) in enumerate(wanted) if category == found[i].category]
        if not same:
            continue
        overlaps = iou(np.array(found[i].box), np.array([wanted[j][1] for j in same], float))
        best = int(overlaps.argmax())
        if overlaps[best] >= least and free[same[best]]:
            free[same[best]] = False
            result[i] = True
    return result


def background_box(boxes: Sequence[Box], rng: np.random.Generator, tries: int = 10) -> Box | None:
    """A box on no object, or on parts of some; None if `tries` found none."""
    for _ in range(tries):
        width, height = rng.uniform(0.25, 0.6, 2)
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        box = (float(x), float(y), float(x + width), float(y + height))
        if iou(np.array(box), np.array(boxes)).max() <= BACKGROUND:
            return box
    return None

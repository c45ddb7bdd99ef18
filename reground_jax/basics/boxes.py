"""Areas and overlaps of boxes. All boxes are xyxy; nothing here imports jax."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def area(box: Sequence[float]) -> float:
    x0, y0, x1, y1 = box
    return (x1 - x0) * (y1 - y0)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two boxes share; 0 if they do not overlap."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def iou(box: Float[np.ndarray, "4"], others: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N"]:
    """Intersection over union of one box with each of the others; 0 if both are empty."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)

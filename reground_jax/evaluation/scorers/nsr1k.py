"""LayoutGPT's rules for NSR-1K: are there as many as told, and do they stand as told?

From eval_models/GLIP/eval_counting.py, eval_spatial.py and utils.py of
github.com/weixi-feng/LayoutGPT, for the boxes of any detector.
"""

import math
from collections.abc import Mapping, Sequence

Corners = Sequence[float]  # x0, y0, x1, y1
SECTOR = math.sqrt(2) / 2  # cosine of 45 degrees


def counting(
    told: Sequence[tuple[str, int]], found: Mapping[str, int], *, comparison: bool
) -> tuple[int, int]:
    """(right, of): how many of the counts are met, by the rule of LayoutGPT's published numbers.

    A comparison ("three cars and fewer cats") is right if the first count is exact and the second
    is on the right side of it, or equal. It then adds 1, although it is counted as 2: even perfect
    images do not reach 100 %. `counting_clean` counts it as 1.
    """
    wanted = dict(told)
    if not comparison:
        return sum(found.get(name, 0) == count for name, count in wanted.items()), len(wanted)
    (first, count), (second, other) = told
    apart = found.get(second, 0) - count
    side = apart == 0 if other == count else apart * (other - count) > 0
    return int(found.get(first, 0) == count and side), len(wanted)


def counting_clean(
    told: Sequence[tuple[str, int]], found: Mapping[str, int], *, comparison: bool
) -> tuple[int, int]:
    """`counting` in which a comparison is one question, so that perfect images reach 100 %."""
    right, of = counting(told, found, comparison=comparison)
    return right, 1 if comparison else of


def spatial(relation: str, first: Sequence[Corners], second: Sequence[Corners]) -> bool:
    """Whether any two boxes of the objects stand in the relation; "next to" is left or right."""
    accepted = ("left", "right", "next to") if relation == "next to" else (relation,)
    return any(relation_of(a, b) in accepted for a in first for b in second)


def relation_of(a: Corners, b: Corners) -> str:
    """Where a's center is seen from b's: right, top, left, bottom, or diagonal.

    Each of the four is a sector of 90 degrees without its edges. Equal boxes are diagonal. Boxes
    are xyxy, y down.
    """
    right = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    up = (b[1] + b[3]) / 2 - (a[1] + a[3]) / 2
    distance = math.sqrt(right * right + up * up)
    if distance == 0:
        return "diagonal"
    cosine, sine = right / distance, up / distance
    sectors = (("right", cosine), ("top", sine), ("left", -cosine), ("bottom", -sine))
    return next((name for name, value in sectors if value > SECTOR), "diagonal")

"""The numbers of ReGround's paper (arXiv 2403.13589) that are known publicly.

Not the same detector, CLIP or images as ours: the paper does not say which ones it used.
"""

from typing import NamedTuple


class Known(NamedTuple):
    """A row of its tables: CLIP score and YOLO score."""

    clip: float
    yolo: float


# By set of cases, then method and gamma.
PAPER: dict[str, dict[tuple[str, float], Known]] = {
    "coco2014": {
        ("sequential", 1.0): Known(30.44, 58.13),
        ("sequential", 0.1): Known(31.65, 22.75),
        ("parallel", 1.0): Known(31.29, 56.96),
    },
    "coco2017": {
        ("sequential", 1.0): Known(30.47, 58.30),
        ("parallel", 1.0): Known(31.06, 57.04),
    },
    "nsr1k-counting": {
        ("sequential", 1.0): Known(32.46, 65.36),
        ("parallel", 1.0): Known(33.20, 63.92),
    },
}
# How much of the swing of the sequential wiring between gamma 1 and 0.1 the parallel wiring gains
# in CLIP score, and loses in YOLO score. Those of 2017 do not follow from the rows above.
SHARES = {"coco2014": (0.7025, 0.0331), "coco2017": (0.6833, 0.0262)}
# By PickScore, how often (or how much: it is not said) ReGround is preferred.
PREFERENCES = {"coco2017": 0.5566, "coco-drop": 0.5757}

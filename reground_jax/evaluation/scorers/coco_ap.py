"""COCO's average precision, and its exact bootstrap over images.

`match` is the matching of pycocotools' COCOeval (2.0.11) for one image and category. `precisions`
is its accumulation with images that count any number of times: the result for a resample is what
COCOeval says of images that are really repeated, as long as no two detections of a category have
the same score. It was written anew because COCOeval matches whole data sets only, prints, and
cannot count an image twice; the tests compare both.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix

from reground_jax.evaluation.statistics import Record, Statistic, Weights

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
ALL = (1 << len(IOUS)) - 1  # the bits of a detection that is so at every IoU
MOST = 100  # detections per image and category, the best ones
GROUP = 256  # resamples at a time


class Matches(NamedTuple):
    """What became of each detection, at each IoU of IOUS.

    hit      it has the object, or is in an ignored one
    ignored  it is neither right nor wrong
    """

    hit: Bool[np.ndarray, "10 D"]
    ignored: Bool[np.ndarray, "10 D"]


def match(
    found: Float[np.ndarray, "D 4"],
    wanted: Float[np.ndarray, "G 4"],
    *,
    crowd: Bool[np.ndarray, "G"] | None = None,
    areas: Float[np.ndarray, "G"] | None = None,
    area_range: tuple[float, float] = (0, np.inf),
) -> Matches:
    """Matches detections, best first, with the objects of their image and category.

    Boxes are xyxy in any unit. areas: of the objects (default: of their boxes). An object that is
    a crowd or has an area outside the range is ignored, and so is what is found there; a detection
    without an object is ignored if its own area is outside the range.
    """
    crowd = np.zeros(len(wanted), bool) if crowd is None else crowd
    areas = _areas(wanted) if areas is None else areas
    low, high = area_range
    unwanted = crowd | (areas < low) | (areas > high)
    overlaps = _overlaps(found, wanted, crowd)
    hit, ignored = (np.zeros((len(IOUS), len(found)), bool) for _ in range(2))
    taken = np.zeros((len(IOUS), len(wanted)), bool)
    for d in np.flatnonzero((overlaps >= IOUS[0]).any(1)):
        fits = (overlaps[d] >= IOUS[:, None]) & (~taken | crowd)
        real = fits & ~unwanted
        fits = np.where(real.any(1, keepdims=True), real, fits)
        # Of equal overlaps, COCOeval takes the last.
        best = len(wanted) - 1 - np.where(fits, overlaps[d], -1)[:, ::-1].argmax(1)
        levels = np.flatnonzero(fits.any(1))
        taken[levels, best[levels]] = True
        hit[levels, d] = True
        ignored[levels, d] = unwanted[best[levels]]
    sizes = _areas(found)
    return Matches(hit, ignored | (~hit & ((sizes < low) | (sizes > high))))


def _areas(boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _overlaps(
    found: Float[np.ndarray, "D 4"],
    wanted: Float[np.ndarray, "G 4"],
    crowd: Bool[np.ndarray, "G"],
) -> Float[np.ndarray, "D G"]:
    """IoU; with a crowd, the share of the detection that lies in it."""
    low = np.maximum(found[:, None, :2], wanted[:, :2])
    high = np.minimum(found[:, None, 2:], wanted[:, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    own = _areas(found)[:, None]
    union = np.where(crowd, own, own + _areas(wanted) - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


class Ranked(NamedTuple):
    """The detections of a category in all images, best first; ties in the order of the images.

    Only those that are a hit, or ignored, at some IoU. hit and ignored have a bit for each IoU.
    plain  how many other detections of each image come between this one and the one before
    """

    image: Int[np.ndarray, "K"]
    hit: Int[np.ndarray, "K"]
    ignored: Int[np.ndarray, "K"]
    plain: csr_matrix  # [K, N]


def bits(matches: Matches) -> list[tuple[int, int]]:
    """(hit, ignored) of each detection as integers, with a bit for each IoU; hits count objects."""
    ones = 1 << np.arange(len(IOUS))
    hit = ones @ (matches.hit & ~matches.ignored)
    return list(zip(hit.tolist(), (ones @ matches.ignored).tolist(), strict=True))


def precisions(
    records: Sequence[Record], weights: Weights, levels: Sequence[int] = range(len(IOUS))
) -> dict[str, Float[np.ndarray, "R L"]]:
    """The average precision of each category in each resample, at IOUS[levels].

    records: "found", [category, score, hit, ignored] of each detection, best first (see `bits`);
    "objects", the number of objects by category. NaN where a resample has no object of a category.
    """
    objects: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(records)))
    rows: dict[str, list[tuple[float, int, int, int]]] = defaultdict(list)
    for index, record in enumerate(records):
        for category, score, hit, ignored in record["found"]:
            if ignored != ALL:
                rows[category].append((score, index, hit, ignored))
        for category, count in record["objects"].items():
            objects[category][index] = count
    names = sorted(category for category, count in objects.items() if count.any())
    totals = np.array([objects[name] for name in names]).reshape(-1, len(records)) @ weights.T
    groups = [slice(start, start + GROUP) for start in range(0, len(weights), GROUP)]
    columns = [np.ascontiguousarray(weights[group].T) for group in groups]
    result = {}
    for name, total in zip(names, totals, strict=True):
        ranked = _ranked(rows[name], len(records))
        parts = zip(groups, columns, strict=True)
        result[name] = np.concatenate([_precision(ranked, total[g], w, levels) for g, w in parts])
    return result


def _ranked(rows: Sequence[tuple[float, int, int, int]], images: int) -> Ranked:
    score = np.array([row[0] for row in rows])
    image, hit, ignored = np.array([row[1:] for row in rows], int).reshape(-1, 3).T
    order = np.argsort(-score, kind="stable")
    image, hit, ignored = image[order], hit[order], ignored[order]
    special = np.flatnonzero(hit | ignored)
    # Nothing below the last hit changes a precision that counts.
    plain = np.setdiff1d(np.arange(special[-1] if len(special) else 0), special)
    place = np.searchsorted(special, plain), image[plain]
    between = csr_matrix((np.ones(len(plain)), place), shape=(len(special), images))
    return Ranked(image[special], hit[special], ignored[special], between)


def _precision(
    ranked: Ranked,
    objects: Float[np.ndarray, "R"],
    weights: Float[np.ndarray, "N R"],
    levels: Sequence[int],
) -> Float[np.ndarray, "R L"]:
    own = weights[ranked.image]
    plain = (ranked.plain @ weights).cumsum(0)
    result = np.zeros((len(objects), len(levels)))
    for column, level in enumerate(levels):
        hit = np.flatnonzero(ranked.hit >> level & 1)
        if len(hit):
            counts = 1 - (ranked.ignored >> level & 1)
            total = plain[hit] + (own * counts[:, None]).cumsum(0)[hit]
            result[:, column] = _area(own[hit].cumsum(0), total, objects)
    result[objects == 0] = np.nan
    return result


def _area(
    right: Float[np.ndarray, "K R"],
    total: Float[np.ndarray, "K R"],
    objects: Float[np.ndarray, "R"],
) -> Float[np.ndarray, "R"]:
    """The mean over RECALLS of the highest precision at that recall or more; 0 beyond the last.

    right, total: of the detections down to each hit. Precision is highest at hits.
    """
    precision = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(RECALLS, right / np.maximum(objects, 1), side="right")
    return (envelope * np.diff(reached, axis=0, prepend=0)).sum(0) / len(RECALLS)


def average_precision(levels: Sequence[int]) -> Statistic:
    """AP averaged over IOUS[levels], then over the categories with objects in a resample."""

    def statistic(records: Sequence[Record], weights: Weights) -> Float[np.ndarray, "R"]:
        total, measured = np.zeros(len(weights)), np.zeros(len(weights))
        for values in precisions(records, weights, levels).values():
            there = ~np.isnan(values[:, 0])
            total += np.where(there, values.mean(1), 0)
            measured += there
        return np.divide(total, measured, out=np.full_like(total, np.nan), where=measured > 0)

    return statistic

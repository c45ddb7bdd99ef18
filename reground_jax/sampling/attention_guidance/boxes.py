"""What is guided: boxes with the tokens of their phrases, as cells of a feature map. On the host.

GLIGEN's grounding has every box; guidance only those that have an area and whose phrase is part of
the prompt.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int32

from reground_jax.layout_fields import Box
from reground_jax.words import Words

# Boxes, and pairs of a box and a token, are padded to this number, or 4, 16, ... times as many, so
# that other layouts do not recompile.
FEWEST = 32

T = TypeVar("T", bound=tuple)
Round = Callable[[float], float]


class GuidedBox(NamedTuple):
    """One box that guidance acts on."""

    box: Box
    tokens: tuple[int, ...]  # positions in the encoded prompt, where 0 is its begin token
    slot: int = 0  # of its grounding token


class GuidedLayout(NamedTuple):
    """The boxes of one image that guidance acts on."""

    boxes: tuple[GuidedBox, ...]
    end: int  # tokens from 1 to before this one share the attention of a cell


class Object(NamedTuple):
    """Boxes with the same words in the prompt."""

    boxes: tuple[GuidedBox, ...]
    tokens: tuple[int, ...]


def guided_layouts(words: Words) -> list[GuidedLayout]:
    """Boxes without an area, such as GLIGEN's style token, and without words take no part."""

    def box(edges: np.ndarray, tokens: np.ndarray, slot: int) -> GuidedBox:
        return GuidedBox(tuple(edges.tolist()), tuple(np.flatnonzero(tokens).tolist()), slot)

    def guided(edges: np.ndarray, tokens: np.ndarray) -> bool:
        return bool(edges[0] < edges[2] and edges[1] < edges[3] and tokens.any())

    return [
        GuidedLayout(
            tuple(
                box(edges, own, slot)
                for slot, (edges, own) in enumerate(zip(boxes, tokens, strict=True))
                if guided(edges, own)
            ),
            int(end),
        )
        for boxes, tokens, end in zip(*words, strict=True)
    ]


def objects_of(boxes: Sequence[GuidedBox]) -> list[Object]:
    """Boxes whose phrases are the same words of the prompt are one object, in order."""
    words = dict.fromkeys(box.tokens for box in boxes)
    return [Object(tuple(box for box in boxes if box.tokens == tokens), tokens) for tokens in words]


def cells(box: Box, height: int, width: int, rounded: Round = np.round) -> tuple[int, ...]:
    """(x0, y0, x1, y1) of a box in cells, ends exclusive; at least one cell.

    rounded: `np.round`, half to even, as in BoxDiff, or `int`, as in the other methods.
    """
    x0, y0, x1, y1 = (
        int(rounded(edge * size))
        for edge, size in zip(box, (width, height, width, height), strict=True)
    )
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def mask_of(edges: Sequence[int], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Which cells lie in a box, given by its edges in cells."""
    x0, y0, x1, y1 = edges
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def union_of(
    boxes: Iterable[GuidedBox], height: int, width: int, rounded: Round
) -> Bool[np.ndarray, "H W"]:
    """Which cells lie in any of the boxes."""
    masks = [mask_of(cells(own.box, height, width, rounded), height, width) for own in boxes]
    return np.any(masks, axis=0)


def count_of_largest(masks: Bool[np.ndarray, "P ..."], share: float) -> Int32[np.ndarray, "P"]:
    """How many cells are the share of each mask that is counted: at least one."""
    counts = masks.sum(tuple(range(1, masks.ndim)))
    return np.maximum(1, (share * counts).astype(np.int32))


def padded_size(count: int) -> int:
    """How many rows hold `count`: few sizes, so that other layouts do not recompile."""
    size = FEWEST
    while size < count:
        size *= 4
    return size


def stack(samples: Sequence[T], sizes: T) -> T:
    """One array per field, [B, ...], from the arrays of each sample, padded with zeros.

    sizes: for each field the length of each leading axis to pad, as a tuple.
    """

    def padded(array: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
        missing = [(0, n - m) for n, m in zip(lengths, array.shape, strict=False)]
        missing += [(0, 0)] * (array.ndim - len(missing))
        return np.pad(array, missing) if missing else array

    columns = zip(zip(*samples, strict=True), sizes, strict=True)
    return type(sizes)(*(np.stack([padded(a, n) for a in column]) for column, n in columns))

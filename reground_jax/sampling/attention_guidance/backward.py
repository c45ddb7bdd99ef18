"""Layout guidance (arXiv 2304.03373) and LMD's stage 2 (arXiv 2305.13655): raw probabilities.

Layout guidance: the share of a token's attention, over all cells, that lies in its boxes should be
1, in every head of every map. LMD: the largest probabilities in the boxes should be high, and those
outside low.

Both differ from the code on purpose: tokens are those of the tokenizer, and a box has at least one
cell.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from reground_jax.layout_fields import Box
from reground_jax.sampling.attention_guidance.boxes import (
    GuidedLayout,
    Object,
    count_of_largest,
    mask_of,
    objects_of,
    padded_size,
    stack,
    union_of,
)
from reground_jax.sampling.attention_guidance.maps import Maps, mean_of_largest


class Region(NamedTuple):
    """The boxes of each pair's object at the size of one map."""

    union: Bool[Array | np.ndarray, "B P T"]
    count_inside: Int[Array | np.ndarray, "B P"]  # how many cells LMD's terms are the mean of
    count_outside: Int[Array | np.ndarray, "B P"]


class Targets(NamedTuple):
    """Pairs P of an object and a token of its words; padding has weight 0."""

    token: Int[Array | np.ndarray, "B P"]
    weight: Float[Array | np.ndarray, "B P"]  # 1 / (tokens of its object * objects)
    regions: tuple[Region, ...]  # one per map, in order


def targets(
    layouts: Sequence[GuidedLayout],
    sizes: Sequence[tuple[int, int]],
    *,
    share: float = 0.2,
    by_extent: bool = False,
) -> Targets:
    """On the host. sizes: rows and columns of each map. by_extent: round as LMD does."""
    objects = [objects_of(layout.boxes) for layout in layouts]
    pairs = padded_size(max(sum(len(own.tokens) for own in each) for each in objects))
    token, weight = np.zeros((2, len(layouts), pairs))
    for row, each in enumerate(objects):
        found = [(t, 1 / (len(own.tokens) * len(each))) for own in each for t in own.tokens]
        if found:
            token[row, : len(found)], weight[row, : len(found)] = zip(*found, strict=True)
    regions = {
        size: stack(
            [_region(each, *size, share, by_extent) for each in objects],
            Region((pairs,), (pairs,), (pairs,)),  # type: ignore[arg-type]
        )
        for size in dict.fromkeys(sizes)
    }
    return Targets(
        token.astype(np.int32),
        weight.astype(np.float32),
        tuple(regions[s] for s in sizes),  # type: ignore[arg-type]
    )


def layout_loss(maps: Maps, targets: Targets) -> Float[Array, "B"]:
    """Layout guidance, per sample."""

    def one(attention: Float[Array, "B P N T"], region: Region) -> Float[Array, "B P"]:
        inside = (attention * region.union[:, :, None]).sum(-1)
        return ((1 - inside / attention.sum(-1)) ** 2).mean(-1)

    return _mean(one, maps, targets)


def lmd_loss(maps: Maps, targets: Targets, background: Float[Array, ""]) -> Float[Array, "B"]:
    """LMD, per sample. background: the weight of what is outside."""

    def one(attention: Float[Array, "B P N T"], region: Region) -> Float[Array, "B P"]:
        union = region.union[:, :, None]
        counts = (n[:, :, None] for n in (region.count_inside, region.count_outside))
        inside, outside = (
            mean_of_largest(attention * mask, jnp.broadcast_to(n, attention.shape[:3]))
            for mask, n in zip((union, ~union), counts, strict=True)
        )
        return (1 - inside + background * outside).sum(-1)

    return _mean(one, maps, targets)


def _mean(one, maps: Maps, targets: Targets) -> Float[Array, "B"]:
    """The mean over maps and objects of the mean over an object's tokens."""
    per_map = [
        one(_of_tokens(attention, targets.token), region)
        for attention, region in zip(maps.values(), targets.regions, strict=True)
    ]
    return (targets.weight * jnp.stack(per_map).mean(0)).sum(-1)


def _of_tokens(
    attention: Float[Array, "B N T S"], token: Int[Array | np.ndarray, "B P"]
) -> Float[Array, "B P N T"]:
    found = jnp.take_along_axis(attention, token[:, None, None], axis=-1)
    return jnp.moveaxis(found, -1, 1)


def _region(
    objects: Sequence[Object], height: int, width: int, share: float, by_extent: bool
) -> Region:
    unions = []
    for own in objects:
        if by_extent:
            masks = [mask_of(_extent(box.box, height, width), height, width) for box in own.boxes]
            union = np.any(masks, axis=0)
        else:
            union = union_of(own.boxes, height, width, int)
        unions += [union.reshape(-1)] * len(own.tokens)
    flat = np.array(unions, bool).reshape(-1, height * width)
    return Region(flat, count_of_largest(flat, share), count_of_largest(~flat, share))


def _extent(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """LMD rounds a box's corner and its extent, each for itself."""
    x0, y0, x1, y1 = box
    left, top = round(x0 * width), round(y0 * height)
    right, bottom = left + round((x1 - x0) * width), top + round((y1 - y0) * height)
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height)

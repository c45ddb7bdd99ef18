"""BoxDiff (arXiv 2307.10816, showlab/BoxDiff `pipeline/sd_pipeline_boxdiff.py`).

For a box and a token of its phrase, with the token's scores I, smoothed: the largest scores inside
the box should be high (inner), those outside low (outer), and the profiles of I along the edges
should reach as far as the box does (corners).

It differs from the code on purpose: `inner` counts at least one cell, so that small boxes have it,
too; outside is outside of all boxes with the same token; all terms are of the refined latents.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from reground_jax.sampling.attention_guidance.boxes import (
    GuidedLayout,
    cells,
    count_of_largest,
    mask_of,
    padded_size,
    stack,
)
from reground_jax.sampling.attention_guidance.maps import (
    Maps,
    average,
    largest,
    mean_of_largest,
    smooth,
    word_scores,
)


class Targets(NamedTuple):
    """The pairs P of a box and a token of each sample; padding has weight 0."""

    end: Int[Array | np.ndarray, "B"]  # see `GuidedLayout`
    token: Int[Array | np.ndarray, "B P"]
    weight: Float[
        Array | np.ndarray, "B Q P"
    ]  # of a pair in the terms of a box: 1 / its number of tokens
    inside: Bool[Array | np.ndarray, "B P H W"]  # the box
    union: Bool[Array | np.ndarray, "B P H W"]  # all boxes of the token
    near_x: Bool[Array | np.ndarray, "B P W"]  # columns next to the box's left and right edges
    near_y: Bool[Array | np.ndarray, "B P H"]
    count_inside: Int[Array | np.ndarray, "B P"]  # how many cells `inner` is the mean of
    count_outside: Int[Array | np.ndarray, "B P"]


class Terms(NamedTuple):
    """The terms of each pair's loss."""

    inner: Float[Array, "B P"]
    outer: Float[Array, "B P"]
    corner_x: Float[Array, "B P"]
    corner_y: Float[Array, "B P"]


def targets(
    layouts: Sequence[GuidedLayout], size: tuple[int, int], *, share: float, reach: int
) -> Targets:
    """On the host. size: rows and columns of the maps."""
    made = [_targets(layout, *size, share, reach) for layout in layouts]
    pairs = padded_size(max(len(one.token) for one in made))
    boxes = padded_size(max(len(one.weight) for one in made))
    lengths: dict[str, Any] = {name: (pairs,) for name in Targets._fields}
    lengths |= {"end": (), "weight": (boxes, pairs)}
    return stack(made, Targets(**lengths))


def edge_weight(sigma: float) -> float:
    """Of the smoothing. The code lacks a factor of 2 in the exponent of its Gaussian."""
    return math.exp(-((1 / (2 * sigma)) ** 2))


def terms(scores: Float[Array, "B P H W"], targets: Targets) -> Terms:
    """scores: smoothed, of each pair's token."""
    inside, union = jnp.asarray(targets.inside), jnp.asarray(targets.union)
    flat = (*inside.shape[:2], -1)

    def corner(axis: int, near: Array | np.ndarray) -> Array:
        profile = largest(scores, axis) - union.max(axis).astype(scores.dtype)
        return (jnp.abs(profile) * near).mean(-1)

    return Terms(
        1 - mean_of_largest((scores * inside).reshape(flat), targets.count_inside),
        mean_of_largest((scores * ~union).reshape(flat), targets.count_outside),
        corner(2, targets.near_x),
        corner(3, targets.near_y),
    )


def loss(
    maps: Maps, targets: Targets, edge: Float[Array | np.ndarray, ""]
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """(loss, largest inner term of a box), per sample."""
    scores = word_scores(average(maps), targets.token, targets.end)
    scores = smooth(scores.reshape(targets.inside.shape), edge)
    found = terms(scores, targets)
    total = jnp.einsum("bqp,bp->b", targets.weight, sum(found))
    inner = jnp.einsum("bqp,bp->bq", targets.weight, found.inner)
    return total, largest(inner)


def _targets(layout: GuidedLayout, height: int, width: int, share: float, reach: int) -> Targets:
    boxes = layout.boxes
    pairs = [(row, own, token) for row, own in enumerate(boxes) for token in own.tokens]
    edges = [cells(own.box, height, width) for own in boxes]
    masks = np.zeros((len(boxes), height, width), bool)
    for row, own in enumerate(edges):
        masks[row] = mask_of(own, height, width)
    inside = masks[np.array([row for row, _, _ in pairs], int)]
    union = np.array(
        [masks[[token in own.tokens for own in boxes]].any(0) for _, _, token in pairs], bool
    ).reshape(inside.shape)
    weight = np.zeros((len(boxes), len(pairs)), np.float32)
    near_x, near_y = np.zeros((len(pairs), width), bool), np.zeros((len(pairs), height), bool)
    for i, (row, own, _) in enumerate(pairs):
        weight[row, i] = 1 / len(own.tokens)
        x0, y0, x1, y1 = edges[row]
        for near, low, high in ((near_x[i], x0, x1), (near_y[i], y0, y1)):
            at = np.arange(len(near))
            near |= (abs(at - low) <= reach) | (abs(at - high) <= reach)
    return Targets(
        np.array(layout.end, np.int32),
        np.array([token for _, _, token in pairs], np.int32), weight, inside, union, near_x, near_y,
        count_of_largest(inside, share), count_of_largest(~union, share) * ~union.all((1, 2)),
    )  # fmt: skip

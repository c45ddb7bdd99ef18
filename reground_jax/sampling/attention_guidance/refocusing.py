"""Attention-Refocusing (arXiv 2306.05427, `gligen/ldm/models/diffusion/loss.py`).

    CAR   cross-attention: a token's scores should be high in each of its boxes, low in others'
    SAR   self-attention: queries in a box should attend to keys in it
    GSA   the fusers' attention: queries in a box should attend to no grounding token but its own

It differs from the code on purpose: tokens are those of the tokenizer, not words; a box of few
cells has at least one; every box has its own grounding token; every map counts once in GSA.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from reground_jax.sampling.attention_guidance.boxes import (
    GuidedLayout,
    Object,
    cells,
    mask_of,
    objects_of,
    padded_size,
    stack,
)
from reground_jax.sampling.attention_guidance.maps import (
    Maps,
    average,
    largest,
    smooth,
    word_scores,
)

EDGE = float(np.exp(-1))  # of the smoothing: BoxDiff's at sigma 0.5
GSA_WEIGHT = 3.0


class Targets(NamedTuple):
    """Boxes Q, and pairs P of an object and a token of its words; padding has weight 0."""

    end: Int[Array | np.ndarray, "B"]  # see `GuidedLayout`
    token: Int[Array | np.ndarray, "B P"]
    weight: Float[Array | np.ndarray, "B P"]  # 1 / (tokens of its object * objects)
    boxes: Bool[Array | np.ndarray, "B Q H W"]
    slot: Int[Array | np.ndarray, "B Q"]  # each box's grounding token
    share: Float[Array | np.ndarray, "B Q"]  # 1 / objects
    own: Bool[Array | np.ndarray, "B P Q"]  # whether a box belongs to a pair's object


def targets(layouts: Sequence[GuidedLayout], size: tuple[int, int]) -> Targets:
    """On the host. size: rows and columns of the maps."""
    made = [_targets(objects_of(layout.boxes), layout.end, *size) for layout in layouts]
    pairs = padded_size(max(len(one.token) for one in made))
    boxes = padded_size(max(len(one.slot) for one in made))
    lengths: dict[str, Any] = {name: (pairs,) for name in ("token", "weight")}
    lengths |= {name: (boxes,) for name in ("boxes", "slot", "share")}
    return stack(made, Targets(**lengths, end=(), own=(pairs, boxes)))  # type: ignore[arg-type]


def cross_loss(
    maps: Maps, targets: Targets, early: Bool[Array | np.ndarray, ""]
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """(CAR, smallest maximum of a token's scores in one of its boxes), per sample."""
    boxes = jnp.asarray(targets.boxes)
    scores = word_scores(average(maps), targets.token, targets.end)
    scores = smooth(scores.reshape(*scores.shape[:2], *boxes.shape[2:]), EDGE)
    flat, masks = scores.reshape(*scores.shape[:2], -1), boxes.reshape(*boxes.shape[:2], -1)
    others = targets.share[:, None] * ~targets.own > 0
    union = jnp.einsum("bpq,bqt->bpt", targets.own.astype(flat.dtype), masks.astype(flat.dtype)) > 0

    inside = largest(flat[:, :, None] * masks[:, None])  # [B, P, Q]
    foreign = largest((flat * ~union)[:, :, None] * masks[:, None])
    outside = largest(flat * ~masks.any(1)[:, None])  # [B, P]

    # Weights are read from the scores, but not differentiated.
    known = jax.lax.stop_gradient(inside)
    lacking = jnp.where(known < 0.1, 6.0, jnp.where((known < 0.2) | early, 1.0, 0.0))
    known = jax.lax.stop_gradient(foreign)
    straying = jnp.where(known > 0.15, 4.0, jnp.where((known > 0.1) | early, 1.0, 0.0))
    per_pair = (lacking * (1 - inside) * targets.own).sum(-1)
    per_pair += (straying * foreign * others).sum(-1)
    per_pair += targets.own.sum(-1) / 2 * outside
    smallest = jnp.where(targets.own, inside, jnp.inf).min((1, 2))
    return (targets.weight * per_pair).sum(-1), smallest


def self_loss(maps: Maps, targets: Targets) -> Float[Array, "B"]:
    """SAR: the share of a box's attention that goes outside of it."""
    outside = ~targets.boxes.reshape(*targets.boxes.shape[:2], -1)

    def one(attention: Float[Array, "B N T T"]) -> Float[Array, "B"]:
        strayed = jnp.einsum("bqns,bqs->bqn", _rows(attention, targets), outside)
        return (targets.share * strayed.mean(-1)).sum(-1)

    return jnp.stack([one(attention) for attention in maps.values()]).mean(0)


def fuser_loss(maps: Maps, targets: Targets) -> Float[Array, "B"]:
    """GSA: the most that a box's queries attend to a grounding token of another box."""
    attention = jnp.stack(list(maps.values())).mean(0)
    cells = attention.shape[2]
    grounding = _rows(attention, targets)[..., cells:]  # [B, Q, N, G]
    own = targets.slot[..., None] == jnp.arange(grounding.shape[-1])[None, None]
    most = largest(jnp.where(own[:, :, None], 0, grounding))
    return (targets.share * most.mean(-1)).sum(-1)


def _rows(attention: Float[Array, "B N T S"], targets: Targets) -> Float[Array, "B Q N S"]:
    """The mean over the queries of each box."""
    masks = targets.boxes.reshape(*targets.boxes.shape[:2], -1).astype(attention.dtype)
    masks = masks / jnp.maximum(masks.sum(-1, keepdims=True), 1)
    return jnp.einsum("bqt,bnts->bqns", masks, attention)


def _targets(objects: Sequence[Object], end: int, height: int, width: int) -> Targets:
    pairs = [(row, token) for row, own in enumerate(objects) for token in own.tokens]
    boxes = [(row, box) for row, own in enumerate(objects) for box in own.boxes]
    masks = [mask_of(cells(box.box, height, width, int), height, width) for _, box in boxes]
    count = len(objects)
    return Targets(
        np.array(end, np.int32),
        np.array([token for _, token in pairs], np.int32),
        np.array([1 / (len(objects[row].tokens) * count) for row, _ in pairs], np.float32),
        np.array(masks, bool).reshape(-1, height, width),
        np.array([box.slot for _, box in boxes], np.int32),
        np.full(len(boxes), 1 / max(count, 1), np.float32),
        np.array([[mine == row for row, _ in boxes] for mine, _ in pairs], bool).reshape(
            len(pairs), len(boxes)
        ),
    )

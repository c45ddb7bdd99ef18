"""Grounding by key points: the joints of persons become tokens (`keypoint_grounding_net.py`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from reground_jax.basics.short_repr import short_repr
from reground_jax.config import UNetConfig
from reground_jax.networks.grounding.features import (
    TokenNet,
    blend,
    fourier_features,
    fourier_width,
    mlp,
    mlp_macs,
    through,
)

JOINTS = 17  # COCO's, in its order
POINT_WIDTH = fourier_width(2)


class Grounding(NamedTuple):
    """The joints of P persons per sample: G = 17 P slots, all joints of a person in a row.

    Persons are ordered by size, the largest first. A slot with mask 0 becomes the null token.
    """

    points: Float[Array | np.ndarray, "B G 2"]  # x, y in 0..1, float32
    mask: Float[Array | np.ndarray, "B G"]  # 1: visible

    __repr__ = short_repr

    def null(self) -> "Grounding":
        """The same number of null tokens, for the unconditional branch of guidance."""
        return self._replace(mask=jnp.zeros_like(self.mask))


class PositionNet(TokenNet):
    """An MLP over [embedding of the person + embedding of the joint, Fourier(x, y)]."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        width = config.text_width
        self.linears = nnx.List(mlp(width + POINT_WIDTH, width, rngs=rngs))
        self.person_embeddings = nnx.Param(jnp.zeros((config.persons, width)))
        self.keypoint_embeddings = nnx.Param(jnp.zeros((JOINTS, width)))
        self.null_person_feature = nnx.Param(jnp.zeros((width,)))
        self.null_xy_feature = nnx.Param(jnp.zeros((POINT_WIDTH,)))

    @jax.named_scope("grounding_tokens")
    def __call__(self, grounding: Grounding, *, dtype: DTypeLike) -> Float[Array, "B G E"]:
        """Grounding tokens, computed in `dtype` except for the Fourier features (float32)."""
        persons, joints = self.person_embeddings[...], self.keypoint_embeddings[...]
        who = (persons[:, None] + joints[None]).reshape(-1, persons.shape[-1])
        mask = grounding.mask
        who = jnp.broadcast_to(who.astype(dtype), (len(mask), *who.shape))
        who = blend(who, mask, self.null_person_feature)
        where = blend(fourier_features(grounding.points), mask, self.null_xy_feature)
        return through(self.linears, jnp.concatenate([who, where.astype(dtype)], axis=-1))


def macs(config: UNetConfig, tokens: int) -> int:
    """Multiply-accumulates of the position net for one sample."""
    return tokens * mlp_macs(config.text_width + POINT_WIDTH, config.text_width)

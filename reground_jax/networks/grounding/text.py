"""Grounding by text: a phrase in a box becomes a token (GLIGEN's `text_grounding_net.py`)."""

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

BOX_WIDTH = fourier_width(4)


class Grounding(NamedTuple):
    """Phrases in boxes: G slots per sample; a slot with mask 0 becomes the learned null token."""

    boxes: Float[Array | np.ndarray, "B G 4"]  # xyxy, 0..1, float32
    phrases: Float[Array | np.ndarray, "B G E"]  # pooled CLIP embedding of each phrase
    mask: Float[Array | np.ndarray, "B G"]  # 1: box, 0: empty

    __repr__ = short_repr

    def null(self) -> "Grounding":
        """The same number of null tokens, for the unconditional branch of guidance."""
        return self._replace(mask=jnp.zeros_like(self.mask))


class PositionNet(TokenNet):
    """An MLP over [phrase, Fourier(box)], with learned features for what is absent."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        width = config.text_width
        self.linears = nnx.List(mlp(width + BOX_WIDTH, width, rngs=rngs))
        self.null_positive_feature = nnx.Param(jnp.zeros((width,)))
        self.null_position_feature = nnx.Param(jnp.zeros((BOX_WIDTH,)))

    @jax.named_scope("grounding_tokens")
    def __call__(self, grounding: Grounding, *, dtype: DTypeLike) -> Float[Array, "B G E"]:
        """Grounding tokens, computed in `dtype` except for the Fourier features (float32)."""
        mask = grounding.mask
        phrases = blend(jnp.asarray(grounding.phrases, dtype), mask, self.null_positive_feature)
        features = blend(fourier_features(grounding.boxes), mask, self.null_position_feature)
        return through(self.linears, jnp.concatenate([phrases, features.astype(dtype)], axis=-1))


def macs(config: UNetConfig, tokens: int) -> int:
    """Multiply-accumulates of the position net for one sample."""
    return tokens * mlp_macs(config.text_width + BOX_WIDTH, config.text_width)

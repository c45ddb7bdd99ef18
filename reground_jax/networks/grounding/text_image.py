"""Grounding by text and images: a phrase and a reference image in a box become a token each.

Source: GLIGEN's `text_image_grounding_net.py`.
"""

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
    mlp,
    mlp_macs,
    through,
)
from reground_jax.networks.grounding.text import BOX_WIDTH


class Grounding(NamedTuple):
    """G boxes per sample, each with a phrase, a reference image, or both.

    A box without one of them has weight 0 for it; weights in between mix it with its null feature.
    """

    boxes: Float[Array | np.ndarray, "B G 4"]  # xyxy, 0..1, float32
    mask: Float[Array | np.ndarray, "B G"]  # 1: box, 0: empty
    phrases: Float[Array | np.ndarray, "B G E"]  # pooled CLIP embedding of each phrase
    phrase_weights: Float[Array | np.ndarray, "B G"]
    images: Float[Array | np.ndarray, "B G E"]  # `image_feature` of each reference image
    image_weights: Float[Array | np.ndarray, "B G"]

    __repr__ = short_repr

    def null(self) -> "Grounding":
        """The same number of null tokens, for the unconditional branch of guidance."""
        none = jnp.zeros_like(self.mask)
        return self._replace(mask=none, phrase_weights=none, image_weights=none)


class PositionNet(TokenNet):
    """One MLP over [phrase, Fourier(box)] and one over [image, Fourier(box)]."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        width = config.text_width
        self.linears_text = nnx.List(mlp(width + BOX_WIDTH, width, rngs=rngs))
        self.linears_image = nnx.List(mlp(width + BOX_WIDTH, width, rngs=rngs))
        self.null_text_feature = nnx.Param(jnp.zeros((width,)))
        self.null_image_feature = nnx.Param(jnp.zeros((width,)))
        self.null_position_feature = nnx.Param(jnp.zeros((BOX_WIDTH,)))

    @jax.named_scope("grounding_tokens")
    def __call__(self, grounding: Grounding, *, dtype: DTypeLike) -> Float[Array, "B T E"]:
        """T = 2 G grounding tokens: those of the phrases, then those of the images.

        Computed in `dtype` except for the Fourier features (float32). A box with only one of them
        gives two tokens as well.
        """
        boxes = fourier_features(grounding.boxes)
        position = blend(boxes, grounding.mask, self.null_position_feature).astype(dtype)
        phrases = blend(
            jnp.asarray(grounding.phrases, dtype), grounding.phrase_weights, self.null_text_feature
        )
        images = blend(
            jnp.asarray(grounding.images, dtype), grounding.image_weights, self.null_image_feature
        )
        tokens = [
            through(layers, jnp.concatenate([feature, position], axis=-1))
            for layers, feature in ((self.linears_text, phrases), (self.linears_image, images))
        ]
        return jnp.concatenate(tokens, axis=1)


def macs(config: UNetConfig, tokens: int) -> int:
    """Multiply-accumulates of the position net for one sample."""
    return tokens * mlp_macs(config.text_width + BOX_WIDTH, config.text_width)

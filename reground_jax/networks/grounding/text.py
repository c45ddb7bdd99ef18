"""Grounding by text: a phrase in a box becomes a token (GLIGEN's `text_grounding_net.py`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from reground_jax.basics.short_repr import short_repr
from reground_jax.networks.layers import Linear

NUM_FREQUENCIES = 8
FOURIER_WIDTH = NUM_FREQUENCIES * 2 * 4  # frequencies x (sin, cos) x (x0, y0, x1, y1)
HIDDEN = 512


class Grounding(NamedTuple):
    """Phrases in boxes: G slots per sample; a slot with mask 0 becomes the learned null token."""

    boxes: Float[Array, "B G 4"]  # xyxy, 0..1, float32
    phrases: Float[Array, "B G E"]  # pooled CLIP embedding of each phrase
    mask: Float[Array, "B G"]  # 1: box, 0: empty

    __repr__ = short_repr

    def null(self) -> "Grounding":
        """The same number of null tokens, for the unconditional branch of guidance."""
        return self._replace(mask=jnp.zeros_like(self.mask))


def fourier_features(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 64"]:
    """Features [..., 64] of boxes [..., 4] (xyxy, 0..1), in float32.

    Ordered by frequency, then sin and cos, then x0 y0 x1 y1. Frequencies are 100 ** (k / 8), not
    times pi. Always float32: bfloat16 boxes would be off by 0.1 radian at the highest frequency.
    """
    frequencies = 100.0 ** (jnp.arange(NUM_FREQUENCIES, dtype=jnp.float32) / NUM_FREQUENCIES)
    edges = boxes.astype(jnp.float32)[..., None, :]
    angles = edges * jnp.expand_dims(frequencies, (*range(edges.ndim - 2), -1))  # [..., 8, 4]
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-2)  # [..., 8, 2, 4]
    return waves.reshape(*boxes.shape[:-1], FOURIER_WIDTH)


class PositionNet(nnx.Module):
    """Linear, SiLU, Linear, SiLU, Linear over [phrase, Fourier(box)]; learned null features."""

    def __init__(self, text_width: int, *, rngs: nnx.Rngs):
        self.linears = nnx.List(
            [
                Linear(text_width + FOURIER_WIDTH, HIDDEN, rngs=rngs),
                Linear(HIDDEN, HIDDEN, rngs=rngs),
                Linear(HIDDEN, text_width, rngs=rngs),
            ]
        )
        self.null_positive_feature = nnx.Param(jnp.zeros((text_width,)))
        self.null_position_feature = nnx.Param(jnp.zeros((FOURIER_WIDTH,)))

    @jax.named_scope("grounding_tokens")
    def __call__(self, grounding: Grounding, *, dtype: DTypeLike) -> Float[Array, "B G E"]:
        """Grounding tokens, computed in `dtype` except for the Fourier features (float32)."""
        slots = grounding.mask[..., None] > 0
        null_phrase, null_box = self.null_positive_feature[...], self.null_position_feature[...]
        phrases = jnp.where(slots, grounding.phrases.astype(dtype), null_phrase.astype(dtype))
        features = jnp.where(slots, fourier_features(grounding.boxes), null_box)
        h = jnp.concatenate([phrases, features.astype(dtype)], axis=-1)
        first, second, last = self.linears
        return last(jax.nn.silu(second(jax.nn.silu(first(h)))))


def macs(text_width: int, tokens: int) -> int:
    """Multiply-accumulates of the position net for one sample."""
    return tokens * ((text_width + FOURIER_WIDTH) * HIDDEN + HIDDEN * HIDDEN + HIDDEN * text_width)

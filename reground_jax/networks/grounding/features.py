"""What the position nets share: null tokens, Fourier features, learned null features, their MLP."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from reground_jax.networks.layers import Linear

NUM_FREQUENCIES = 8
HIDDEN = 512


class TokenNet(nnx.Module):
    """Makes grounding tokens [B, G, E] of the Grounding of its kind."""

    def __call__(self, grounding: Any, *, dtype: DTypeLike) -> Float[Array, "B G E"]:
        raise NotImplementedError

    def null_tokens(self, grounding: Any, *, dtype: DTypeLike) -> Float[Array, "B G E"]:
        """As many null tokens, for the unconditional branch of guidance."""
        return self(grounding.null(), dtype=dtype)


def fourier_width(numbers: int) -> int:
    """The number of Fourier features of that many numbers: frequencies x (sin, cos) x numbers."""
    return NUM_FREQUENCIES * 2 * numbers


def fourier_features(numbers: Float[Array | np.ndarray, "*B N"]) -> Float[Array, "*B F"]:
    """Features [..., 16 N] of boxes or points [..., N] in 0..1, in float32.

    Ordered by frequency, then sin and cos, then the numbers (x0 y0 x1 y1). Frequencies are
    100 ** (k / 8), not times pi. Always float32: bfloat16 boxes would be off by 0.1 radian at the
    highest frequency.
    """
    frequencies = 100.0 ** (jnp.arange(NUM_FREQUENCIES, dtype=jnp.float32) / NUM_FREQUENCIES)
    edges = numbers.astype(jnp.float32)[..., None, :]
    angles = edges * jnp.expand_dims(frequencies, (*range(edges.ndim - 2), -1))  # [..., 8, N]
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-2)  # [..., 8, 2, N]
    return waves.reshape(*numbers.shape[:-1], fourier_width(numbers.shape[-1]))


def blend(
    given: Float[Array, "*B F"], weight: Float[Array | np.ndarray, "*B"], null: nnx.Param
) -> Float[Array, "*B F"]:
    """`given` where the weight is 1, the learned null feature [F] where it is 0.

    A weight in between mixes them. What is given does not matter where the weight is 0, even if it
    is not finite.
    """
    absent = jnp.broadcast_to(null[...].astype(given.dtype), given.shape)
    weight = weight[..., None].astype(given.dtype)
    return jnp.where(weight == 0, absent, given * weight + (1 - weight) * absent)


def mlp(fan_in: int, width: int, *, rngs: nnx.Rngs) -> list[Linear]:
    """The layers of every position net's end: Linear, SiLU, Linear, SiLU, Linear."""
    sizes = ((fan_in, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, width))
    return [Linear(*size, rngs=rngs) for size in sizes]


def through(layers: Sequence[Linear], x: Float[Array, "... I"]) -> Float[Array, "... O"]:
    """`x` through the layers of `mlp`."""
    first, second, last = layers
    return last(jax.nn.silu(second(jax.nn.silu(first(x)))))


def mlp_macs(fan_in: int, width: int) -> int:
    return fan_in * HIDDEN + HIDDEN * HIDDEN + HIDDEN * width

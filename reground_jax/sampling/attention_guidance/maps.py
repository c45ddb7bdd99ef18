"""What the losses read from attention maps: a score for each word at each cell."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reground_jax.networks.places import Place

# By place: attention probabilities of the conditional branch, float32.
Maps = dict[Place, Float[Array, "B _ _ _"]]  # heads, cells, keys

SHARPNESS = 100.0  # of the softmax over words: maps averaged over heads are nearly flat


def average(maps: Maps) -> Float[Array, "B T S"]:
    """The mean over all heads of all maps."""
    return jnp.concatenate(list(maps.values()), axis=1).mean(1)


def word_scores(
    average: Float[Array, "B T S"],
    tokens: Int[Array | np.ndarray, "B P"],
    end: Int[Array | np.ndarray, "B"],
) -> Float[Array, "B P T"]:
    """How much of each cell belongs to a token, among those from 1 to before `end`."""
    position = jnp.arange(average.shape[-1])[None]
    words = (position > 0) & (position < end[:, None])
    logits = jnp.where(words[:, None], SHARPNESS * average, -jnp.inf)
    scores = jax.nn.softmax(logits, axis=-1)
    return jnp.take_along_axis(scores, jnp.asarray(tokens)[:, None], axis=-1).swapaxes(1, 2)


def smooth(
    scores: Float[Array, "B P H W"], edge: Float[Array | np.ndarray, ""] | float
) -> Float[Array, "B P H W"]:
    """A 3 x 3 filter [edge, 1, edge] each way, normalized; the border is reflected."""

    def along(axis: int, x: Array) -> Array:
        first, middle, last = (
            jax.lax.slice_in_dim(x, i, i + x.shape[axis] - 2, axis=axis) for i in range(3)
        )
        return (middle + edge * (first + last)) / (1 + 2 * edge)

    padded = jnp.pad(scores, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    return along(3, along(2, padded))


def largest(values: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """The maximum, with a gradient that goes to one place.

    `jnp.max` finds that place by comparing its input with its result. Once compiled, both may be
    computed again with other rounding, and then the gradient is lost.
    """
    at = jnp.argmax(jax.lax.stop_gradient(values), axis=axis, keepdims=True)
    return jnp.take_along_axis(values, at, axis=axis).squeeze(axis)


def mean_of_largest(
    values: Float[Array, "*B T"], count: Int[Array | np.ndarray, "*B"]
) -> Float[Array, "*B"]:
    """The mean of the `count` largest values; 0 for none."""
    ranked = -jnp.sort(-values, axis=-1)
    rank = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    counted = rank < count[..., None]
    return jnp.where(counted, ranked, 0).sum(-1) / jnp.maximum(count, 1)

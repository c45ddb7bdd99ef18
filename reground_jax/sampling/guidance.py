"""Classifier-free guidance: two branches per sample, adjacent in the batch.

The unconditional branch reads the negative prompt and keeps its fusers on, over null tokens only.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float


def interleave(
    first: Float[ArrayLike, "B ..."], second: Float[ArrayLike, "B ..."]
) -> Float[Array, "K ..."]:
    """[a0, b0, a1, b1, ...]: both branches of a sample side by side, K = 2 B."""
    return jnp.stack([first, second], axis=1).reshape(-1, *np.shape(first)[1:])


def branch_text(
    text: Float[ArrayLike, "B S E"], null_text: Float[ArrayLike, "B S E"]
) -> Float[Array, "K S E"]:
    """Text for both branches, K = 2 B."""
    return interleave(text, null_text)


def guide(
    output: Float[Array, "K H W C"], scale: Float[Array, ""] | float, batch: int
) -> Float[Array, "B H W C"]:
    """unconditional + scale * (conditional - unconditional); `output` itself if unguided."""
    if output.shape[0] == batch:
        return output
    branches = output.reshape(batch, 2, *output.shape[1:])
    conditional, unconditional = branches[:, 0], branches[:, 1]
    return unconditional + scale * (conditional - unconditional)

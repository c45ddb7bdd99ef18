"""Sums over the whole batch, from inside a step in which a device sees its share alone.

Shares are of equal size, so the mean of the devices' means is the mean of the batch, and the
trainer averages losses, gradients and metrics so. Of a ratio of sums, or a logarithm of a mean,
that is not true: those ask here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reground_jax.devices import SPLIT

AXIS = SPLIT[0]  # the name of the devices' axis


@jax.custom_jvp
def total(share: Float[Array, ""]) -> Float[Array, ""]:
    """The sum over all devices.

    Differentiated, it counts this device's share as many times as there are devices: the average
    of their gradients, which the trainer takes, is then the gradient of the sum.
    """
    return jax.lax.psum(share, AXIS)


@total.defjvp
def _(primals, tangents):
    return total(*primals), jax.lax.axis_size(AXIS) * tangents[0]


def ratio(numerator: Float[Array, ""], count: Int[Array, ""]) -> Float[Array, ""]:
    """The batch's sum of `numerator` by its sum of `count`; 0 where nothing is counted."""
    return total(numerator) / jnp.maximum(jax.lax.psum(count, AXIS), 1)


def average(share: Float[Array, ""]) -> Float[Array, ""]:
    """The batch's mean, of the mean over this device's share."""
    return jax.lax.pmean(share, AXIS)

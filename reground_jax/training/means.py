"""Sums over the whole batch, inside a step where each device sees only its share.

All shares have the same size, so the mean over devices of per-device means is the mean over the
batch; the trainer averages losses, gradients and metrics that way. This does not hold for a ratio
of sums or the logarithm of a mean: those use the functions here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reground_jax.devices import SPLIT

AXIS = SPLIT[0]  # name of the device axis


@jax.custom_jvp
def total(share: Float[Array, ""]) -> Float[Array, ""]:
    """The sum over all devices.

    Its derivative is multiplied by the number of devices: the trainer averages gradients over
    devices, which then gives the gradient of the sum.
    """
    return jax.lax.psum(share, AXIS)


@total.defjvp
def _(primals, tangents):
    return total(*primals), jax.lax.axis_size(AXIS) * tangents[0]


def ratio(numerator: Float[Array, ""], count: Int[Array, ""]) -> Float[Array, ""]:
    """The batch's sum of `numerator` divided by its sum of `count`; 0 if the count is zero."""
    return total(numerator) / jnp.maximum(jax.lax.psum(count, AXIS), 1)


def average(share: Float[Array, ""]) -> Float[Array, ""]:
    """The mean over the batch, given the mean over this device's share."""
    return jax.lax.pmean(share, AXIS)

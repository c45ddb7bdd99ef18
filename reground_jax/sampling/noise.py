"""Random numbers: one seed per image, and a fixed stream for each use of it.

An image's noise depends only on its own seed, not on batch order or size, devices, hosts, or
JAX's global random settings. Every draw is normal(fold_in(fold_in(key(seed), kind), step)).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, UInt32

# Kinds of noise, the first `fold_in` constant. Never renumber: images would change.
INITIAL = 0  # x_T
FRESH = 1  # what a solver adds at each step: DDIM if eta > 0, and those that always do
INPAINT = 2  # re-noising of the known region at each step
VAE = 3  # sampling the encoder's posterior


def initial_noise(
    seeds: UInt32[Array | np.ndarray, "B"], shape: tuple[int, ...]
) -> Float32[Array, "B H W C"]:
    """Unit normal x_T: one latent of `shape` (H, W, C) per seed. Seeds may be traced."""
    return step_noise(seeds, shape, INITIAL, 0)


def step_noise(
    seeds: UInt32[Array | np.ndarray, "B"],
    shape: tuple[int, ...],
    kind: int,
    step: int | Int[Array | np.ndarray, ""],
) -> Float32[Array, "B H W C"]:
    """Unit normal noise for one `kind` (FRESH, INPAINT ...) and step.

    One `shape` (H, W, C) per seed. Seeds and step may be traced.
    """

    def of_one_image(seed: UInt32[Array, ""]) -> Float32[Array, "H W C"]:
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), kind)
        return jax.random.normal(jax.random.fold_in(key, step), shape, jnp.float32)

    # The older, non-partitionable bits differ, and the environment may select them.
    with jax.threefry_partitionable(True):
        return jax.vmap(of_one_image)(jnp.asarray(seeds, jnp.uint32))

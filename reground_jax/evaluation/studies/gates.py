"""A model with weaker or stronger grounding, to test whether that explains a result."""

import dataclasses

import jax
import jax.numpy as jnp

from reground_jax.pipeline import Pipeline
from reground_jax.storage.checkpoint import flatten, unflatten
from reground_jax.storage.facts import GATES


def with_scaled_gates(pipe: Pipeline, scale: float) -> Pipeline:
    """A copy of the pipeline with tanh(gate) of every fuser times `scale`, clipped to ±0.999."""

    def scaled(name: str, leaf: jax.Array) -> jax.Array:
        if not name.endswith(GATES):
            return leaf
        gate = jnp.clip(scale * jnp.tanh(leaf.astype(jnp.float32)), -0.999, 0.999)
        return jax.device_put(jnp.arctanh(gate).astype(leaf.dtype), leaf.sharding)

    leaves = ((name, scaled(name, leaf)) for name, leaf in flatten(pipe.params))
    return dataclasses.replace(pipe, params=unflatten(leaves))

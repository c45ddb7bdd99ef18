"""Encodes images to latents and phrases to embeddings for the diffusion stages."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reground_jax.devices import SPLIT, WHOLE, over_devices
from reground_jax.images import from_uint8
from reground_jax.model import network
from reground_jax.training.opening import Stage
from reground_jax.training.state import Leaves, nested


def encoder(stage: Stage, *, scaled: bool = True) -> Callable[..., jax.Array]:
    """A compiled function: (VAE parameters, uint8 images [B, S, S, 3]) -> float32 mean latents."""
    graph, _ = network(stage.model, "vae")
    factor = 1.0 if scaled else stage.model.vae.scaling_factor

    def encode(params, images):
        images = from_uint8(images).astype(stage.config.dtype)
        latents = nnx.merge(graph, params).encode(images, attend=stage.attend())
        return latents.astype(jnp.float32) / factor

    return over_devices(encode, (WHOLE, SPLIT), SPLIT, devices=stage.devices)


def phrase_encoder(stage: Stage) -> Callable[..., np.ndarray]:
    """A compiled function: (text encoder parameters, int32 ids [1, S]) -> float32 pooled [E]."""
    graph, _ = network(stage.model, "text_encoder")
    run = jax.jit(lambda params, ids: nnx.merge(graph, params)(ids).pooled[0])
    return lambda params, ids: np.asarray(run(params, ids), np.float32)


def latent_deviation(stage: Stage, average: Leaves, batches: int = 8) -> float:
    """Root mean square of unscaled mean latents over the first `batches` training batches."""
    vae = nested(average)["vae"]
    encode = encoder(stage, scaled=False)
    size = stage.config.recipe.batch_size
    squares = []
    for index in range(batches):
        images = np.stack([e.image for e in stage.data.source.batch(index, size)])
        squares.append(float(jnp.square(encode(vae, images)).mean()))
    return float(np.sqrt(np.mean(squares)))

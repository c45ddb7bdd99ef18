"""CLIP whole: both transformers, projected to one space (transformers' CLIPModel)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32, Int

from reground_jax.config import CLIPConfig
from reground_jax.networks.clip import CLIPTextModel
from reground_jax.networks.clip_vision import CLIPVisionModel
from reground_jax.networks.layers import Linear


class CLIPModel(nnx.Module):
    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        projection = config.vision.projection_width
        self.text_model = CLIPTextModel(config.text, rngs=rngs)
        self.vision_model = CLIPVisionModel(config.vision, rngs=rngs)
        self.text_projection = Linear(config.text.width, projection, bias=False, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.array(2.6592))  # the logarithm of 1 / 0.07

    def texts(self, ids: Int[Array, "B L"]) -> Float32[Array, "B P"]:
        """Embeddings of length 1. `ids`: as CLIPTextModel takes them."""
        return _unit(self.text_projection(self.text_model(ids).pooled))

    def images(self, pixels: Float32[Array, "B S S 3"]) -> Float32[Array, "B P"]:
        """Embeddings of length 1. `pixels`: as CLIPVisionModel takes them."""
        return _unit(self.vision_model(pixels))

    def similarity(
        self, pixels: Float32[Array, "B S S 3"], ids: Int[Array, "B L"]
    ) -> Float32[Array, "B"]:
        """The cosine of the angle between each image and its text."""
        return (self.images(pixels) * self.texts(ids)).sum(-1)

    def logit(self, cosine: Float32[Array, "B"]) -> Float32[Array, "B"]:
        """What the softmax of CLIP's training takes: cosines times the learned scale."""
        return jnp.exp(self.logit_scale[...]) * cosine


def _unit(x: Float32[Array, "B P"]) -> Float32[Array, "B P"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

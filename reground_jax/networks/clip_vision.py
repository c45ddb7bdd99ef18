"""CLIP's image transformer (Radford et al., arXiv 2103.00020), and GLIGEN's features of its output.

It is transformers' CLIPVisionModelWithProjection: a token for each patch after a class token, whose
last state is normed and projected to CLIP's joint space.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from reground_jax.config import CLIPVisionConfig
from reground_jax.networks.clip import EPS, Layer
from reground_jax.networks.layers import Conv, Embedding, LayerNorm, Linear

# The norm that GLIGEN gives to every image feature, about that of a phrase's
# (gligen_inference.py, get_clip_feature).
FEATURE_NORM = 28.7


class CLIPVisionModel(nnx.Module):
    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        width, patch = config.width, config.patch_size
        self.config = config
        self.class_embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.patch_embedding = Conv(
            3, width, kernel=patch, stride=patch, padding=((0, 0), (0, 0)), bias=False, rngs=rngs
        )
        self.position_embedding = Embedding(config.num_tokens, width, rngs=rngs)
        self.pre_layernorm = LayerNorm(width, eps=EPS, rngs=rngs)
        self.layers = nnx.List(
            Layer(config, causal=False, rngs=rngs) for _ in range(config.num_layers)
        )
        self.post_layernorm = LayerNorm(width, eps=EPS, rngs=rngs)
        self.visual_projection = Linear(width, config.projection_width, bias=False, rngs=rngs)

    @jax.named_scope("clip_vision")
    def __call__(
        self, images: Float32[Array, "B S S 3"], *, dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "B P"]:
        """CLIP's image embeddings, before their normalization to length 1.

        `images`: S is `image_size`; CLIP's mean is subtracted and its standard deviation divided
        out.
        """
        patches = self.patch_embedding(images.astype(dtype))  # [B, S / patch, S / patch, E]
        first = jnp.broadcast_to(
            self.class_embedding[...].astype(dtype), (len(images), 1, self.config.width)
        )
        x = jnp.concatenate([first, patches.reshape(len(images), -1, self.config.width)], axis=1)
        x = x + self.position_embedding.embedding[...].astype(dtype)[None]
        x = self.pre_layernorm(x)
        for i, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{i}"):
                x = layer(x)
        return self.visual_projection(self.post_layernorm(x[:, 0]))


def image_features(
    embeds: Float[Array, "*B P"], kernel: Float[Array, "P E"]
) -> Float32[Array, "*B E"]:
    """What GLIGEN reads of reference images: features of the same space as those of phrases.

    embeds: of `CLIPVisionModel`. kernel: the weight of CLIP's text projection, whose transpose
    stands in for its inverse. Each feature has length 28.7; that of zeros is zeros.
    """
    x = jnp.matmul(
        embeds.astype(jnp.float32), kernel.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return FEATURE_NORM * x / jnp.where(length > 0, length, 1)

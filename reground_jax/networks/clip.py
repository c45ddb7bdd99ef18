"""CLIP's text transformer (Radford et al., arXiv 2103.00020; transformers' CLIPTextModel names).

`Layer` is also that of the image transformer (clip_vision.py), without the mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from reground_jax.config import CLIPTextConfig, CLIPVisionConfig
from reground_jax.networks.attention_blocks import merge_heads, split_heads
from reground_jax.networks.layers import Embedding, LayerNorm, Linear

EPS = 1e-5
Config = CLIPTextConfig | CLIPVisionConfig


class TextEncoding(NamedTuple):
    """Both after the final LayerNorm. `hidden` is of an earlier layer if the model skips some."""

    hidden: Float[Array, "B S E"]  # what cross-attention reads
    pooled: Float[Array, "B E"]  # the last layer at the end-of-text token: a phrase's embedding


class MLP(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.fc1 = Linear(config.width, config.mlp_width, rngs=rngs)
        self.fc2 = Linear(config.mlp_width, config.width, rngs=rngs)
        self.quick = config.activation == "quick_gelu"

    @jax.named_scope("feed_forward")
    def __call__(self, x: Float[Array, "B S E"]) -> Float[Array, "B S E"]:
        h = self.fc1(x)
        h = h * jax.nn.sigmoid(1.702 * h) if self.quick else jax.nn.gelu(h, approximate=False)
        return self.fc2(h)


class SelfAttention(nnx.Module):
    """With a causal mask or none: padding is attended to, as in Stable Diffusion's training."""

    def __init__(self, config: Config, *, causal: bool, rngs: nnx.Rngs):
        self.qkv_proj = Linear(config.width, 3 * config.width, rngs=rngs)
        self.out_proj = Linear(config.width, config.width, rngs=rngs)
        self.num_heads, self.causal = config.num_heads, causal

    @jax.named_scope("self_attention")
    def __call__(self, x: Float[Array, "B S E"]) -> Float[Array, "B S E"]:
        q, k, v = split_heads(self.qkv_proj(x), self.num_heads, 3)
        logits = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32)
        logits = logits * q.shape[-1] ** -0.5
        if self.causal:
            logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return self.out_proj(merge_heads(jnp.einsum("bnts,bsnd->btnd", weights, v)))


class Layer(nnx.Module):
    def __init__(self, config: Config, *, causal: bool, rngs: nnx.Rngs):
        self.layer_norm1 = LayerNorm(config.width, eps=EPS, rngs=rngs)
        self.self_attn = SelfAttention(config, causal=causal, rngs=rngs)
        self.layer_norm2 = LayerNorm(config.width, eps=EPS, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x: Float[Array, "B S E"]) -> Float[Array, "B S E"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPTextModel(nnx.Module):
    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.width, rngs=rngs)
        self.position_embedding = Embedding(config.max_length, config.width, rngs=rngs)
        self.layers = nnx.List(
            Layer(config, causal=True, rngs=rngs) for _ in range(config.num_layers)
        )
        self.final_layer_norm = LayerNorm(config.width, eps=EPS, rngs=rngs)

    @jax.named_scope("clip")
    def __call__(self, ids: Int[Array, "B S"], *, dtype: DTypeLike = jnp.float32) -> TextEncoding:
        """`ids` with begin, end and padding tokens in place, S at most `max_length`."""
        x = self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))[None]
        x = early = x.astype(dtype)
        for i, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{i}"):
                x = layer(x)
            if i == len(self.layers) - 1 - self.config.clip_skip:
                early = x
        last = hidden = self.final_layer_norm(x)
        if self.config.clip_skip:
            hidden = self.final_layer_norm(early)
        eos = self.config.eos_token_id
        end = ids.argmax(-1) if eos is None else (ids == eos).argmax(-1)
        return TextEncoding(hidden, jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0])

"""Self-attention and cross-attention of the transformer blocks, as pieces for a wiring to combine.

Each takes precomputed projections, so the caller computes only once what is the same at every step
(keys and values of text and grounding tokens) and what two branches share.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from reground_jax.basics.short_repr import short_repr
from reground_jax.networks.attention import Attend, probabilities
from reground_jax.networks.layers import Linear

LAYER_NORM_EPS = 1e-5  # for every LayerNorm in a transformer block


class KeyValue(NamedTuple):
    """Keys and values of one block's text or grounding tokens, computed once before the loop."""

    key: Float[Array, "B S N D"]
    value: Float[Array, "B S N D"]

    __repr__ = short_repr


def split_heads(x: Float[Array, "B T M"], heads: int, parts: int) -> tuple[Array, ...]:
    """[B, T, parts * N * D] to `parts` arrays [B, T, N, D]."""
    x = x.reshape(*x.shape[:2], parts, heads, -1)
    return tuple(x[:, :, part] for part in range(parts))


def merge_heads(x: Float[Array, "B T N D"]) -> Float[Array, "B T C"]:
    return x.reshape(*x.shape[:2], -1)


def repeat_to(x: Float[Array, "A ..."], batch: int) -> Float[Array, "B ..."]:
    """Each sample repeated `batch // A` times in a row: its guidance branches are adjacent."""
    return x if x.shape[0] == batch else jnp.repeat(x, batch // x.shape[0], axis=0)


def add(x: Float[Array, "A ..."], *residuals: Float[Array, "B ..."] | None) -> Array:
    """x plus each residual that is not None. If B > A, the guidance branches diverge here."""
    for residual in residuals:
        x = x if residual is None else repeat_to(x, residual.shape[0]) + residual
    return x


class SelfAttention(nnx.Module):
    """Attention over the block's own tokens and, with `extra`, over the grounding tokens.

    The q, k and v projections are packed: `to_qkv` [C, 3C] computes the input of a call. Extra
    tokens get no queries.
    """

    def __init__(self, channels: int, *, num_heads: int, rngs: nnx.Rngs):
        self.to_qkv = Linear(channels, 3 * channels, bias=False, rngs=rngs)
        self.to_out = Linear(channels, channels, rngs=rngs)
        self.num_heads = num_heads

    def key_value(self, tokens: Float[Array, "B G C"]) -> KeyValue:
        kernel = self.to_qkv.kernel[...][:, tokens.shape[-1] :].astype(tokens.dtype)
        return KeyValue(*split_heads(tokens @ kernel, self.num_heads, 2))

    def __call__(
        self, qkv: Float[Array, "A T M"], *, extra: KeyValue | None = None, attend: Attend
    ) -> Float[Array, "B T C"]:
        return self.to_out(merge_heads(attend(*self._parts(qkv, extra))))

    def map(
        self, qkv: Float[Array, "A T M"], *, extra: KeyValue | None = None
    ) -> Float32[Array, "B N T S"]:
        """The attention map of a call."""
        q, k, _ = self._parts(qkv, extra)
        return probabilities(q, k)

    def _parts(self, qkv: Array, extra: KeyValue | None) -> tuple[Array, Array, Array]:
        q, k, v = split_heads(qkv, self.num_heads, 3)
        if extra is not None:
            q, k, v = (repeat_to(part, extra.key.shape[0]) for part in (q, k, v))
            k = jnp.concatenate([k, extra.key], axis=1)
            v = jnp.concatenate([v, extra.value], axis=1)
        return q, k, v


class CrossAttention(nnx.Module):
    """Attention of `to_q`'s queries over the precomputed keys and values of the text."""

    def __init__(self, channels: int, text_width: int, *, num_heads: int, rngs: nnx.Rngs):
        self.to_q = Linear(channels, channels, bias=False, rngs=rngs)
        self.to_kv = Linear(text_width, 2 * channels, bias=False, rngs=rngs)
        self.to_out = Linear(channels, channels, rngs=rngs)
        self.num_heads = num_heads

    def key_value(self, text: Float[Array, "B S E"]) -> KeyValue:
        return KeyValue(*split_heads(self.to_kv(text), self.num_heads, 2))

    def __call__(
        self, q: Float[Array, "A T C"], text: KeyValue, *, attend: Attend
    ) -> Float[Array, "B T C"]:
        return self.to_out(merge_heads(attend(self._query(q, text), text.key, text.value)))

    def map(self, q: Float[Array, "A T C"], text: KeyValue) -> Float32[Array, "B N T S"]:
        """The attention map of a call."""
        return probabilities(self._query(q, text), text.key)

    def _query(self, q: Array, text: KeyValue) -> Array:
        (q,) = split_heads(q, self.num_heads, 1)
        return repeat_to(q, text.key.shape[0])

"""GLIGEN's fuser, and the projection that it may share with cross-attention.

GLIGEN: arXiv 2301.07093, eq. 8 (`GatedSelfAttentionDense` of the original code).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from reground_jax.networks.attention import Attend
from reground_jax.networks.attention_blocks import LAYER_NORM_EPS, KeyValue, SelfAttention, add
from reground_jax.networks.layers import FeedForward, LayerNorm, Linear, normalize, per_channel


class GatedSelfAttention(nnx.Module):
    """GLIGEN's fuser: the whole gated residual, both gated attention and gated feed-forward."""

    def __init__(self, channels: int, text_width: int, *, num_heads: int, rngs: nnx.Rngs):
        self.linear = Linear(text_width, channels, rngs=rngs)
        self.norm1 = LayerNorm(channels, eps=LAYER_NORM_EPS, rngs=rngs)
        self.attn = SelfAttention(channels, num_heads=num_heads, rngs=rngs)
        self.norm2 = LayerNorm(channels, eps=LAYER_NORM_EPS, rngs=rngs)
        self.ff = FeedForward(channels, rngs=rngs)
        self.alpha_attn = nnx.Param(jnp.zeros(()))
        self.alpha_dense = nnx.Param(jnp.zeros(()))

    def key_value(self, tokens: Float[Array, "B G E"]) -> KeyValue:
        return self.attn.key_value(self.norm1(self.linear(tokens)))

    @jax.named_scope("fuser")
    def project(self, x: Float[Array, "A T C"]) -> Float[Array, "A T M"]:
        """The attention's projections of `x`, unless they come from a `Packed`."""
        return self.attn.to_qkv(self.norm1(x))

    @jax.named_scope("fuser")
    def __call__(
        self,
        x: Float[Array, "A T C"],
        qkv: Float[Array, "A T M"],
        grounding: KeyValue,
        gate: Float[Array, ""],
        *,
        attend: Attend,
    ) -> Float[Array, "B T C"]:
        """GSA(x, g) in the formulas of transformer.py; `gate` is the step's gate, 0..1, float32.

        qkv: the result of `project`.
        """
        scale_attn = (gate * jnp.tanh(self.alpha_attn[...].astype(jnp.float32))).astype(x.dtype)
        scale_dense = (gate * jnp.tanh(self.alpha_dense[...].astype(jnp.float32))).astype(x.dtype)
        a = scale_attn * self.attn(qkv, extra=grounding, attend=attend)
        return a + scale_dense * self.ff(self.norm2(add(x, a)))


class Packed(NamedTuple):
    """One linear layer for the fuser's q, k, v and cross-attention's q, from one normalized input.

    In the parallel wiring both branches read the same features, so their LayerNorms have the same
    statistics; the affine parameters are folded into the weights here, in float32.
    """

    kernel: Float[Array, "C M"]  # M = 4 C
    bias: Float[Array, "M"]

    @classmethod
    def of(cls, layers: Sequence[tuple[LayerNorm, Linear]], dtype: DTypeLike) -> "Packed":
        """Packs linear layers, each with the LayerNorm before it, that read the same input."""
        kernels, biases = zip(*(fold(norm, linear) for norm, linear in layers), strict=True)
        return cls(
            jnp.concatenate(kernels, axis=1).astype(dtype), jnp.concatenate(biases).astype(dtype)
        )


def fold(norm: LayerNorm, linear: Linear) -> tuple[Float[Array, "C M"], Float[Array, "M"]]:
    """Kernel and bias, float32, of `linear` with the affine parameters of `norm` folded in."""
    parts = (linear.kernel, norm.scale, norm.bias)
    kernel, scale, bias = (jnp.asarray(part[...], jnp.float32) for part in parts)
    return scale[:, None] * kernel, bias @ kernel


@jax.named_scope("packed_projection")
def project_both(
    x: Float[Array, "A T C"], packed: Packed | None
) -> tuple[Float[Array, "A T M"] | None, Float[Array, "A T C"] | None]:
    """The fuser's q, k, v and cross-attention's q of `x`, in one matrix product."""
    if packed is None:
        return None, None
    both = normalize(x, LAYER_NORM_EPS) @ packed.kernel
    both = both + per_channel(packed.bias, both)
    return both[..., : -x.shape[-1]], both[..., -x.shape[-1] :]

"""The transformer block, where GLIGEN and ReGround differ.

    sequential (GLIGEN)     h = x + SA(x);  h = h + GSA(h, g);  h = h + CA(h, c);    h = h + FF(h)
    parallel   (ReGround)   h = x + SA(x);  h = h + GSA(h, g) + CA(h, c);            h = h + FF(h)

Each branch is a residual: it reads through its own LayerNorm and returns what is to be added.
GLIGEN: arXiv 2301.07093, eq. 6-8. ReGround: arXiv 2403.13589, section 4.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reground_jax.networks.attention import Attend
from reground_jax.networks.layers import FeedForward, GroupNorm, LayerNorm, Linear
from reground_jax.settings import Wiring

LAYER_NORM_EPS = 1e-5
SPATIAL_NORM_EPS = 1e-6


class KeyValue(NamedTuple):
    """Keys and values of tokens that no step changes, per block: computed once before the loop."""

    key: Float[Array, "B S N D"]
    value: Float[Array, "B S N D"]


class BlockContext(NamedTuple):
    """What one block attends to besides the image. None: this wiring never reads it."""

    text: KeyValue | None
    grounding: KeyValue | None


def split_heads(x: Float[Array, "B T M"], heads: int, parts: int) -> tuple[Array, ...]:
    """[B, T, parts * N * D] to `parts` arrays [B, T, N, D]."""
    x = x.reshape(*x.shape[:2], parts, heads, -1)
    return tuple(x[:, :, part] for part in range(parts))


def merge_heads(x: Float[Array, "B T N D"]) -> Float[Array, "B T C"]:
    return x.reshape(*x.shape[:2], -1)


def repeat_to(x: Float[Array, "A ..."], batch: int) -> Float[Array, "B ..."]:
    """Each sample `batch // A` times in a row: guidance's branches of one sample are neighbours."""
    return x if x.shape[0] == batch else jnp.repeat(x, batch // x.shape[0], axis=0)


class SelfAttention(nnx.Module):
    """Attention over the block's own tokens; with `extra`, over those of the grounding as well.

    q, k, v are stored packed: `to_qkv` [C, 3C]. No query is computed for extra tokens.
    """

    def __init__(self, channels: int, *, num_heads: int, rngs: nnx.Rngs):
        self.to_qkv = Linear(channels, 3 * channels, bias=False, rngs=rngs)
        self.to_out = Linear(channels, channels, rngs=rngs)
        self.num_heads = num_heads

    def key_value(self, tokens: Float[Array, "B G C"]) -> KeyValue:
        kernel = self.to_qkv.kernel[...][:, tokens.shape[-1] :].astype(tokens.dtype)
        return KeyValue(*split_heads(tokens @ kernel, self.num_heads, 2))

    def __call__(
        self, x: Float[Array, "B T C"], *, extra: KeyValue | None = None, attend: Attend
    ) -> Float[Array, "B T C"]:
        q, k, v = split_heads(self.to_qkv(x), self.num_heads, 3)
        if extra is not None:
            k = jnp.concatenate([k, extra.key], axis=1)
            v = jnp.concatenate([v, extra.value], axis=1)
        return self.to_out(merge_heads(attend(q, k, v)))


class CrossAttention(nnx.Module):
    """Attention over the text, whose keys and values come ready (`key_value`)."""

    def __init__(self, channels: int, text_width: int, *, num_heads: int, rngs: nnx.Rngs):
        self.to_q = Linear(channels, channels, bias=False, rngs=rngs)
        self.to_kv = Linear(text_width, 2 * channels, bias=False, rngs=rngs)
        self.to_out = Linear(channels, channels, rngs=rngs)
        self.num_heads = num_heads

    def key_value(self, text: Float[Array, "B S E"]) -> KeyValue:
        return KeyValue(*split_heads(self.to_kv(text), self.num_heads, 2))

    def __call__(
        self, x: Float[Array, "B T C"], text: KeyValue, *, attend: Attend
    ) -> Float[Array, "B T C"]:
        (q,) = split_heads(self.to_q(x), self.num_heads, 1)
        return self.to_out(merge_heads(attend(q, text.key, text.value)))


class GatedSelfAttention(nnx.Module):
    """GLIGEN's fuser: the whole gated residual, its gated attention and its gated feed-forward."""

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

    def __call__(
        self,
        x: Float[Array, "B T C"],
        grounding: KeyValue,
        gate: Float[Array, ""],
        *,
        attend: Attend,
    ) -> Float[Array, "B T C"]:
        """GSA(x, g) of the formulas above; `gate` in 0..1 is the step's schedule, float32."""
        scale_attn = (gate * jnp.tanh(self.alpha_attn[...].astype(jnp.float32))).astype(x.dtype)
        scale_dense = (gate * jnp.tanh(self.alpha_dense[...].astype(jnp.float32))).astype(x.dtype)
        a = scale_attn * self.attn(self.norm1(x), extra=grounding, attend=attend)
        return a + scale_dense * self.ff(self.norm2(x + a))


class TransformerBlock(nnx.Module):
    def __init__(
        self, channels: int, text_width: int, *, num_heads: int, grounded: bool, rngs: nnx.Rngs
    ):
        def norm() -> LayerNorm:
            return LayerNorm(channels, eps=LAYER_NORM_EPS, rngs=rngs)

        self.norm1, self.norm2, self.norm3 = norm(), norm(), norm()
        self.attn1 = SelfAttention(channels, num_heads=num_heads, rngs=rngs)
        self.attn2 = CrossAttention(channels, text_width, num_heads=num_heads, rngs=rngs)
        self.ff = FeedForward(channels, rngs=rngs)
        self.fuser = (
            GatedSelfAttention(channels, text_width, num_heads=num_heads, rngs=rngs)
            if grounded
            else None
        )

    def context(
        self,
        text: Float[Array, "B S E"],
        tokens: Float[Array, "B G E"] | None,
        *,
        wiring: Wiring,
    ) -> BlockContext:
        """What `__call__` attends to besides `x`: nothing in it changes from step to step."""
        return BlockContext(
            text=None if wiring == "no_text" else self.attn2.key_value(text),
            grounding=None
            if tokens is None or self.fuser is None
            else self.fuser.key_value(tokens),
        )

    def __call__(
        self,
        x: Float[Array, "A T C"],
        context: BlockContext,
        *,
        batch: int,
        gate: Float[Array, ""] | None,
        wiring: Wiring,
        attend: Attend,
    ) -> Float[Array, "B T C"]:
        """`x` may have a batch that divides `batch`: self-attention is then shared by the branches.

        gate: None leaves the fuser out of the program; `wiring` is static.
        """

        def ground(h: Array) -> Array | float:
            if gate is None or self.fuser is None or context.grounding is None:
                return 0.0
            return self.fuser(h, context.grounding, gate, attend=attend)

        def read(h: Array) -> Array:
            assert context.text is not None
            return self.attn2(self.norm2(h), context.text, attend=attend)

        x = x + self.attn1(self.norm1(x), attend=attend)
        x = repeat_to(x, batch)
        match wiring:
            case "sequential":  # GLIGEN: the text is read from features that grounding has changed
                x = x + ground(x)
                x = x + read(x)
            case "parallel":  # ReGround: both read the same features
                x = x + ground(x) + read(x)
            case "text_first":
                x = x + read(x)
                x = x + ground(x)
            case "no_text":
                x = x + ground(x)
            case "no_grounding":  # plain Stable Diffusion
                x = x + read(x)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nnx.Module):
    """A transformer block over the pixels of a feature map, as a residual.

    SD1.x stores proj_in and proj_out as 1x1 convolutions, SD2.x as linear layers: with channels
    last these are the same thing.
    """

    def __init__(
        self,
        channels: int,
        text_width: int,
        *,
        num_heads: int,
        groups: int,
        grounded: bool,
        rngs: nnx.Rngs,
    ):
        self.norm = GroupNorm(channels, groups=groups, eps=SPATIAL_NORM_EPS, rngs=rngs)
        self.proj_in = Linear(channels, channels, rngs=rngs)
        self.block = TransformerBlock(
            channels, text_width, num_heads=num_heads, grounded=grounded, rngs=rngs
        )
        self.proj_out = Linear(channels, channels, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "A H W C"],
        context: BlockContext,
        *,
        batch: int,
        gate: Float[Array, ""] | None,
        wiring: Wiring,
        attend: Attend,
    ) -> Float[Array, "B H W C"]:
        _, height, width, channels = x.shape
        h = self.proj_in(self.norm(x)).reshape(x.shape[0], height * width, channels)
        h = self.block(h, context, batch=batch, gate=gate, wiring=wiring, attend=attend)
        return repeat_to(x, batch) + self.proj_out(h).reshape(batch, height, width, channels)

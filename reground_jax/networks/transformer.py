"""The transformer block, where GLIGEN and ReGround differ.

    sequential (GLIGEN)     h = x + SA(x);  h = h + GSA(h, g);  h = h + CA(h, c);    h = h + FF(h)
    parallel   (ReGround)   h = x + SA(x);  h = h + GSA(h, g) + CA(h, c);            h = h + FF(h)

Each branch is a residual: it reads through its own LayerNorm and returns what is to be added.
GLIGEN: arXiv 2301.07093, eq. 6-8. ReGround: arXiv 2403.13589, section 4.
"""

from typing import NamedTuple, assert_never

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from reground_jax.networks.attention import Attend
from reground_jax.networks.layers import (
    FeedForward,
    GroupNorm,
    LayerNorm,
    Linear,
    normalise,
    per_channel,
)
from reground_jax.settings import WIRINGS, Wiring, check_name
from reground_jax.short_repr import short_repr

LAYER_NORM_EPS = 1e-5
SPATIAL_NORM_EPS = 1e-6


class KeyValue(NamedTuple):
    """Keys and values of tokens that no step changes, per block: computed once before the loop."""

    key: Float[Array, "B S N D"]
    value: Float[Array, "B S N D"]

    __repr__ = short_repr


class BlockContext(NamedTuple):
    """What one block attends to besides the image. None: this wiring never reads it."""

    text: KeyValue | None
    grounding: KeyValue | None

    __repr__ = short_repr


class Packed(NamedTuple):
    """One linear layer for the fuser's q, k, v and cross-attention's q, from one normalised input.

    In the parallel wiring both branches read the same features: their LayerNorms have the same
    statistics, and their affines are folded into the weights here, in float32.
    """

    kernel: Float[Array, "C M"]  # M = 4 C
    bias: Float[Array, "M"]


def split_heads(x: Float[Array, "B T M"], heads: int, parts: int) -> tuple[Array, ...]:
    """[B, T, parts * N * D] to `parts` arrays [B, T, N, D]."""
    x = x.reshape(*x.shape[:2], parts, heads, -1)
    return tuple(x[:, :, part] for part in range(parts))


def merge_heads(x: Float[Array, "B T N D"]) -> Float[Array, "B T C"]:
    return x.reshape(*x.shape[:2], -1)


def repeat_to(x: Float[Array, "A ..."], batch: int) -> Float[Array, "B ..."]:
    """Each sample `batch // A` times in a row: guidance's branches of one sample are neighbours."""
    return x if x.shape[0] == batch else jnp.repeat(x, batch // x.shape[0], axis=0)


def add(x: Float[Array, "A ..."], *residuals: Float[Array, "B ..."] | None) -> Array:
    """x plus each residual that is there. B may be larger than A: guidance's branches part here."""
    for residual in residuals:
        x = x if residual is None else repeat_to(x, residual.shape[0]) + residual
    return x


class SelfAttention(nnx.Module):
    """Attention over the block's own tokens; with `extra`, over those of the grounding as well.

    q, k, v are stored packed: `to_qkv` [C, 3C] makes what a call takes. No query is computed for
    extra tokens.
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
        q, k, v = split_heads(qkv, self.num_heads, 3)
        if extra is not None:
            q, k, v = (repeat_to(part, extra.key.shape[0]) for part in (q, k, v))
            k = jnp.concatenate([k, extra.key], axis=1)
            v = jnp.concatenate([v, extra.value], axis=1)
        return self.to_out(merge_heads(attend(q, k, v)))


class CrossAttention(nnx.Module):
    """Attention over the text, whose keys and values come ready (`key_value`), of `to_q`'s q."""

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
        (q,) = split_heads(q, self.num_heads, 1)
        q = repeat_to(q, text.key.shape[0])
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
        x: Float[Array, "A T C"],
        grounding: KeyValue,
        gate: Float[Array, ""],
        *,
        qkv: Float[Array, "A T M"] | None = None,
        attend: Attend,
    ) -> Float[Array, "B T C"]:
        """GSA(x, g) of the formulas above; `gate` in 0..1 is the step's schedule, float32.

        qkv: the attention's projections of `x`, where they have been computed already (`Packed`).
        """
        scale_attn = (gate * jnp.tanh(self.alpha_attn[...].astype(jnp.float32))).astype(x.dtype)
        scale_dense = (gate * jnp.tanh(self.alpha_dense[...].astype(jnp.float32))).astype(x.dtype)
        qkv = self.attn.to_qkv(self.norm1(x)) if qkv is None else qkv
        a = scale_attn * self.attn(qkv, extra=grounding, attend=attend)
        return a + scale_dense * self.ff(self.norm2(add(x, a)))


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

    def pack(self, dtype: DTypeLike) -> Packed | None:
        """The shared projection of the parallel wiring: a function of the parameters alone."""
        if self.fuser is None:
            return None
        layers = ((self.fuser.norm1, self.fuser.attn.to_qkv), (self.norm2, self.attn2.to_q))
        kernels, biases = zip(*(fold(norm, linear) for norm, linear in layers), strict=True)
        return Packed(
            jnp.concatenate(kernels, axis=1).astype(dtype), jnp.concatenate(biases).astype(dtype)
        )

    def __call__(
        self,
        x: Float[Array, "A T C"],
        context: BlockContext,
        packed: Packed | None = None,
        *,
        gate: Float[Array, ""] | None,
        wiring: Wiring,
        attend: Attend,
    ) -> Float[Array, "B T C"]:
        """B is the batch of `context`; `x` may have a batch that divides it, and what comes before
        the first context is then shared by its branches.

        gate: None leaves the fuser out of the program. packed: of `pack`, for `parallel` only.
        """

        def ground(h: Array, qkv: Array | None = None) -> Array | None:
            if gate is None or self.fuser is None or context.grounding is None:
                return None
            return self.fuser(h, context.grounding, gate, qkv=qkv, attend=attend)

        def read(h: Array, q: Array | None = None) -> Array:
            assert context.text is not None
            q = self.attn2.to_q(self.norm2(h)) if q is None else q
            return self.attn2(q, context.text, attend=attend)

        x = x + self.attn1(self.attn1.to_qkv(self.norm1(x)), attend=attend)
        match wiring:
            case "sequential":  # GLIGEN: the text is read from features that grounding has changed
                x = add(x, ground(x))
                x = add(x, read(x))
            case "parallel":  # ReGround: both read the same features
                qkv, q = project_both(x, packed) if gate is not None else (None, None)
                x = add(x, ground(x, qkv), read(x, q))
            case "text_first":
                x = add(x, read(x))
                x = add(x, ground(x))
            case "no_text":
                x = add(x, ground(x))
            case "no_grounding":  # plain Stable Diffusion
                x = add(x, read(x))
            case _:
                check_name("wiring", wiring, WIRINGS)
                assert_never(wiring)  # a name without a case here
        return x + self.ff(self.norm3(x))


def fold(norm: LayerNorm, linear: Linear) -> tuple[Float[Array, "C M"], Float[Array, "M"]]:
    """Kernel and bias that do to normalised features what `linear` does after `norm`; float32."""
    parts = (linear.kernel, norm.scale, norm.bias)
    kernel, scale, bias = (jnp.asarray(part[...], jnp.float32) for part in parts)
    return scale[:, None] * kernel, bias @ kernel


def project_both(
    x: Float[Array, "A T C"], packed: Packed | None
) -> tuple[Float[Array, "A T M"] | None, Float[Array, "A T C"] | None]:
    """The fuser's q, k, v and cross-attention's q of `x`, by one matrix product."""
    if packed is None:
        return None, None
    both = normalise(x, LAYER_NORM_EPS) @ packed.kernel
    both = both + per_channel(packed.bias, both)
    return both[..., : -x.shape[-1]], both[..., -x.shape[-1] :]


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
        packed: Packed | None = None,
        *,
        gate: Float[Array, ""] | None,
        wiring: Wiring,
        attend: Attend,
    ) -> Float[Array, "B H W C"]:
        _, height, width, channels = x.shape
        h = self.proj_in(self.norm(x)).reshape(x.shape[0], height * width, channels)
        h = self.block(h, context, packed, gate=gate, wiring=wiring, attend=attend)
        return add(x, self.proj_out(h).reshape(h.shape[0], height, width, channels))

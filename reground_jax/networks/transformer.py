"""The transformer block, where GLIGEN and ReGround differ: all wirings, side by side.

    sequential    (GLIGEN)     h = x + SA(x);  h = h + GSA(h, g);  h = h + CA(h, c);  h = h + FF(h)
    parallel      (ReGround)   h = x + SA(x);  h = h + GSA(h, g) + CA(h, c);          h = h + FF(h)
    text_first                 h = x + SA(x);  h = h + CA(h, c);   h = h + GSA(h, g); h = h + FF(h)
    no_text                    h = x + SA(x);  h = h + GSA(h, g);                     h = h + FF(h)
    no_grounding  (plain SD)   h = x + SA(x);  h = h + CA(h, c);                      h = h + FF(h)
    coupled                    h = x + SA(x);  g = GSA(h, g);
                               h = h + w_g g + w_t CA(h + k g, c);                    h = h + FF(h)

`coupled` is GLIGEN at coupling k = 1 and ReGround at k = 0; k and both weights are arguments.
Each branch is a residual: it applies its own LayerNorm and returns what to add.
GLIGEN: arXiv 2301.07093, eq. 6-8. ReGround: arXiv 2403.13589, section 4.

To add a wiring, name it in `settings.Wiring`, and define here what it does (`wired`),
what it reads, and whether it is plain Stable Diffusion while its fusers are off.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, assert_never

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from reground_jax.basics.fields import check_name
from reground_jax.basics.short_repr import short_repr
from reground_jax.networks.attention import Attend
from reground_jax.networks.attention_blocks import (
    LAYER_NORM_EPS,
    CrossAttention,
    KeyValue,
    SelfAttention,
    add,
)
from reground_jax.networks.fusers import GatedSelfAttention, Packed, project_both
from reground_jax.networks.layers import FeedForward, LayerNorm
from reground_jax.networks.places import Attention
from reground_jax.settings import WIRINGS, Wiring


def reads_text(wiring: Wiring) -> bool:
    return wiring != "no_text"


def reads_grounding(wiring: Wiring) -> bool:
    return wiring != "no_grounding"


def plain_without_fusers(wiring: Wiring) -> bool:
    """Whether it is plain Stable Diffusion while its fusers are off."""
    return wiring not in ("no_text", "coupled")  # the latter has its weight of the text


def packs(wiring: Wiring) -> bool:
    """Whether fuser and cross-attention read the same features, so they can share a `Packed`."""
    return wiring == "parallel"


class BlockContext(NamedTuple):
    """What one block attends to besides the image. None: the wiring never reads it."""

    text: KeyValue | None
    grounding: KeyValue | None

    __repr__ = short_repr


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

    @jax.named_scope("context")
    def context(
        self, text: Float[Array, "B S E"], tokens: Float[Array, "B G E"] | None, *, wiring: Wiring
    ) -> BlockContext:
        """What `__call__` attends to besides `x`; it is the same at every step."""
        return BlockContext(
            text=self.attn2.key_value(text) if reads_text(wiring) else None,
            grounding=None
            if tokens is None or self.fuser is None
            else self.fuser.key_value(tokens),
        )

    def pack(self, dtype: DTypeLike, *, wiring: Wiring) -> Packed | None:
        """The projection that both branches share, if any; it depends only on the parameters."""
        if self.fuser is None or not packs(wiring):
            return None
        branches = ((self.fuser.norm1, self.fuser.attn.to_qkv), (self.norm2, self.attn2.to_q))
        return Packed.of(branches, dtype)

    def __call__(
        self,
        x: Float[Array, "A T C"],
        context: BlockContext,
        packed: Packed | None = None,
        amounts: Float[Array, "3"] | None = None,
        *,
        gate: Float[Array, ""] | None,
        wiring: Wiring,
        attend: Attend,
        watch: frozenset[Attention] = frozenset(),
    ) -> tuple[Float[Array, "B T C"], dict[Attention, Float32[Array, "B N T S"]]]:
        """The new `x`, and the maps of the attentions in `watch`, as far as they are computed.

        B is the batch size of `context`; A, that of `x`, may be a divisor of it. What comes before
        the first context is then computed once for all branches of a sample. gate: None leaves the
        fuser out of the program. packed: the result of `pack`. amounts: for `coupled`, the coupling
        and the weights of grounding and text.
        """
        maps: dict[Attention, Array] = {}

        def ground(h: Array, qkv: Array | None = None) -> Array | None:
            if gate is None or self.fuser is None or context.grounding is None:
                return None
            qkv = self.fuser.project(h) if qkv is None else qkv
            if "fuser" in watch:
                maps["fuser"] = self.fuser.attn.map(qkv, extra=context.grounding)
            return self.fuser(h, qkv, context.grounding, gate, attend=attend)

        @jax.named_scope("cross_attention")
        def read(h: Array, q: Array | None = None) -> Array:
            assert context.text is not None
            q = self.attn2.to_q(self.norm2(h)) if q is None else q
            if "text" in watch:
                maps["text"] = self.attn2.map(q, context.text)
            return self.attn2(q, context.text, attend=attend)

        with jax.named_scope("self_attention"):
            qkv = self.attn1.to_qkv(self.norm1(x))
            if "self" in watch:
                maps["self"] = self.attn1.map(qkv)
            x = x + self.attn1(qkv, attend=attend)
        project = functools.partial(project_both, packed=packed if gate is not None else None)
        x = wired(wiring, x, ground, read, project, amounts)
        return x + self.ff(self.norm3(x)), maps


def wired(
    wiring: Wiring,
    x: Array,
    ground: Callable[..., Array | None],
    read: Callable[..., Array],
    project: Callable[[Array], tuple[Array | None, Array | None]],
    amounts: Array | None,
) -> Array:
    """x plus what a wiring makes of the fuser and of attention to the text.

    ground, read: both branches as functions of the features that they read, and of projections of
    these that `project` computes for both. ground returns None without a fuser.
    """
    match wiring:
        case "sequential":  # GLIGEN: text attention reads features that grounding has changed
            x = add(x, ground(x))
            return add(x, read(x))
        case "parallel":  # ReGround: both read the same features
            qkv, q = project(x)
            return add(x, ground(x, qkv), read(x, q))
        case "text_first":
            x = add(x, read(x))
            return add(x, ground(x))
        case "no_text":
            return add(x, ground(x))
        case "no_grounding":  # plain Stable Diffusion
            return add(x, read(x))
        case "coupled":
            assert amounts is not None
            coupling, weight, text_weight = amounts.astype(x.dtype)
            if (g := ground(x)) is None:
                return add(x, text_weight * read(x))
            return add(x, weight * g, text_weight * read(add(x, coupling * g)))
        case _:
            check_name("wiring", wiring, WIRINGS)
            assert_never(wiring)  # a wiring without a case above

"""The transformer block, where GLIGEN and ReGround differ: all wirings, side by side.

    sequential    (GLIGEN)     h = x + SA(x);  h = h + GSA(h, g);  h = h + CA(h, c);  h = h + FF(h)
    parallel      (ReGround)   h = x + SA(x);  h = h + GSA(h, g) + CA(h, c);          h = h + FF(h)
    text_first                 h = x + SA(x);  h = h + CA(h, c);   h = h + GSA(h, g); h = h + FF(h)
    no_text                    h = x + SA(x);  h = h + GSA(h, g);                     h = h + FF(h)
    no_grounding  (plain SD)   h = x + SA(x);  h = h + CA(h, c);                      h = h + FF(h)

Each branch is a residual: it applies its own LayerNorm and returns what to add.
GLIGEN: arXiv 2301.07093, eq. 6-8. ReGround: arXiv 2403.13589, section 4.

To add a wiring, name it in `settings.Wiring`, and define here what it does (`TransformerBlock`) and
what it reads. One that reads the text is plain Stable Diffusion while its fusers are off.
"""

from typing import NamedTuple, assert_never

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

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
from reground_jax.settings import WIRINGS, Wiring


def reads_text(wiring: Wiring) -> bool:
    return wiring != "no_text"


def reads_grounding(wiring: Wiring) -> bool:
    return wiring != "no_grounding"


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
        *,
        gate: Float[Array, ""] | None,
        wiring: Wiring,
        attend: Attend,
    ) -> Float[Array, "B T C"]:
        """B is the batch size of `context`; A, that of `x`, may be a divisor of it.

        What comes before the first context is then computed once for all branches of a sample.
        gate: None leaves the fuser out of the program. packed: the result of `pack`.
        """

        def ground(h: Array, qkv: Array | None = None) -> Array | None:
            if gate is None or self.fuser is None or context.grounding is None:
                return None
            return self.fuser(h, context.grounding, gate, qkv=qkv, attend=attend)

        @jax.named_scope("cross_attention")
        def read(h: Array, q: Array | None = None) -> Array:
            assert context.text is not None
            q = self.attn2.to_q(self.norm2(h)) if q is None else q
            return self.attn2(q, context.text, attend=attend)

        with jax.named_scope("self_attention"):
            x = x + self.attn1(self.attn1.to_qkv(self.norm1(x)), attend=attend)
        match wiring:
            case "sequential":  # GLIGEN: text attention reads features that grounding has changed
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
                assert_never(wiring)  # a wiring without a case above
        return x + self.ff(self.norm3(x))

"""For training: computing values again in the backward pass instead of storing them.

Without this, the backward pass of a full-size U-Net needs 10 GiB of stored values per image, most
of them logits of attention. Sampling has no backward pass and uses none of it.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from reground_jax.networks.attention import plain

F = TypeVar("F", bound=Callable)

# What a recomputed block still stores: the results of its attentions, small and slow to compute.
STORED = "attention"
# Maximum number of logits at once, 12 MB in float32. The backward pass holds about three times
# that: logits, weights and the gradient of one of them.
LOGITS = 3 * 2**20


def recomputed(function: F, remat: bool) -> F:
    """With `remat`, a function whose backward pass computes inner values again.

    It stores its arguments and the results of `blockwise_attention` in it, nothing else.
    """
    if not remat:
        return function
    policy = jax.checkpoint_policies.save_only_these_names(STORED)
    return jax.checkpoint(function, policy=policy)  # type: ignore[return-value]


@jax.named_scope("scores")
def blockwise_attention(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
) -> Float[Array, "B T N D"]:
    """`attention.plain`, one head and one block of queries at a time, forward and backward.

    Each row of logits is computed and summed as in `plain`. If all logits are few, they are one
    block; the backward pass stores none either way.
    """
    batch, queries, heads, width = q.shape
    attend = jax.checkpoint(plain, prevent_cse=False)
    if batch * heads * queries * k.shape[1] <= LOGITS:
        return checkpoint_name(jax.checkpoint(plain)(q, k, v), STORED)
    block = query_block(queries, k.shape[1])

    def fold(x):  # [B, L, N, D] -> [B N, 1, L, 1, D], to map over samples and heads
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, 1, -1, 1, width)

    def one_head(qkv):
        q, k, v = qkv
        if block == queries:
            return attend(q, k, v)
        blocks = q.reshape(queries // block, 1, block, 1, width)
        return jax.lax.map(lambda q: attend(q, k, v), blocks).reshape(q.shape)

    out = jax.lax.map(one_head, (fold(q), fold(k), fold(v)))
    out = out.reshape(batch, heads, queries, width).transpose(0, 2, 1, 3)
    return checkpoint_name(out, STORED)


def query_block(queries: int, keys: int) -> int:
    """The largest divisor of `queries` with at most `LOGITS` logits over `keys`; at least 1."""
    return next(
        queries // count
        for count in range(1, queries + 1)
        if queries % count == 0 and (queries // count * keys <= LOGITS or count == queries)
    )

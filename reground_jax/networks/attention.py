"""One attention function, and the one place that chooses how it is computed.

`q` [B, T, N, D] attends over `k`, `v` [B, S, N, D], scale D ** -0.5, no mask, softmax in float32.

plain    einsum, softmax, einsum: materialises [B, N, T, S]
lean     the same, one head and one block of queries at a time; at most `LOGITS` logits at once
cudnn    NVIDIA's fused flash attention (half precision), through jax.nn.dot_product_attention
pallas   JAX's Pallas flash attention kernel for TPU, with the padding it needs
"""

import functools
from collections.abc import Callable
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from reground_jax.basics.fields import check_name

Backend = Literal["plain", "lean", "cudnn", "pallas"]
BACKENDS: tuple[Backend, ...] = ("plain", "lean", "cudnn", "pallas")
Attend = Callable[..., Array]

# Maximum number of logits in memory at once: 8 MB in float32, about what a core's cache holds, such
# as those of 508 queries over 4096 + 30 keys. If all heads of all samples fit, the plain form needs
# no more memory and has fewer steps.
LOGITS = 2 * 2**20
LANES = 128  # TPU register width: the Pallas kernel needs head width and lengths in multiples of it


def choose_backend(platform: str, dtype: DTypeLike, q_shape: tuple[int, ...], keys: int) -> Backend:
    """The default for a platform ("cpu", "gpu", "tpu"), dtype and shape; a static decision.

    cuDNN supports half precision and head widths that are multiples of 8 (up to 128 on every card
    with cuDNN). On TPU, lean is the default because the Pallas form has not been run there yet.
    """
    batch, queries, heads, width = q_shape
    half = dtype in (jnp.bfloat16, jnp.float16)
    if platform in ("gpu", "cuda") and half and width % 8 == 0 and width <= 256:
        return "cudnn"
    return "plain" if batch * heads * queries * keys <= LOGITS else "lean"


def check_backend(backend: Backend | str | None, platform: str) -> None:
    """Raise ValueError for an unknown backend, or one that the platform cannot run."""
    if backend is None:
        return
    check_name("attention backend", backend, BACKENDS)
    needed = {"cudnn": ("gpu", "cuda"), "pallas": ("tpu",)}.get(backend, (platform,))
    if platform not in needed:
        raise ValueError(
            f"attention backend {backend!r} runs only on {needed[0].upper()}, but the devices are "
            f"{platform.upper()}s: omit `attention` to use the default"
        )


@functools.cache
def attention_for(platform: str, backend: Backend | str | None = None) -> Attend:
    """`attend(q, k, v)` for a platform, or one that always uses a named backend.

    The same arguments return the same function object, so it can be a static argument of a jitted
    program. Raises ValueError for an unknown backend.
    """
    if backend is not None:
        check_name("attention backend", backend, BACKENDS)

    @jax.named_scope("scores")
    def attend(
        q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
    ) -> Float[Array, "B T N D"]:
        chosen = backend or choose_backend(platform, q.dtype, q.shape, k.shape[1])
        return _FORMS[cast(Backend, chosen)](q, k, v)

    return attend


def plain(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
) -> Float[Array, "B T N D"]:
    logits = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.einsum("bnts,bsnd->btnd", weights, v)


def lean(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
) -> Float[Array, "B T N D"]:
    batch, queries, heads, width = q.shape
    count = min(queries, -(-queries * k.shape[1] // LOGITS))
    block = -(-queries // count)

    def fold(x):  # [B, L, N, D] -> [B N, L, D], to map over samples and heads
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, -1, width)

    def one_head(qkv):
        q, k, v = qkv

        def one_block(q):
            # Keys first: XLA on CPU vectorizes reductions over a leading axis, not over the last.
            logits = jnp.einsum("sd,td->st", k, q, preferred_element_type=jnp.float32)
            weights = jnp.exp(logits - logits.max(0, keepdims=True))
            out = jnp.einsum("sd,st->dt", v, weights.astype(v.dtype))
            # Divide the D x T outputs instead of the S x T weights: exact, and fewer divisions.
            return (out / weights.sum(0, keepdims=True)).T.astype(v.dtype)

        if count == 1:
            return one_block(q)
        padded = jnp.pad(q, ((0, count * block - queries), (0, 0)))
        return jax.lax.map(one_block, padded.reshape(count, block, width)).reshape(-1, width)[
            :queries
        ]

    out = jax.lax.map(one_head, (fold(q * width**-0.5), fold(k), fold(v)))
    return out.reshape(batch, heads, queries, width).transpose(0, 2, 1, 3)


def cudnn(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
) -> Float[Array, "B T N D"]:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def pallas(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
) -> Float[Array, "B T N D"]:
    """Pads head width with zeros, and lengths with a segment that real tokens do not attend to."""
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu

    def pad(x):  # [B, L, N, D] -> [B, N, L', D']
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES), (0, 0), (0, -x.shape[3] % LANES)))
        return x.transpose(0, 2, 1, 3)

    def segment(x):
        real = jnp.arange(x.shape[1] + -x.shape[1] % LANES) < x.shape[1]
        return jnp.broadcast_to(real.astype(jnp.int32), (x.shape[0], real.shape[0]))

    queries, keys = q.shape[1] + -q.shape[1] % LANES, k.shape[1] + -k.shape[1] % LANES
    sizes = tpu.BlockSizes(
        block_q=_largest_block(queries, 1024),
        block_k_major=_largest_block(keys, 1024),
        block_k=_largest_block(keys, 1024),
        block_b=1,
    )
    # For half-precision inputs, the kernel accepts only the default matmul precision.
    precision = "highest" if q.dtype == jnp.float32 else "default"
    with jax.default_matmul_precision(precision):
        out = tpu.flash_attention(
            pad(q),
            pad(k),
            pad(v),
            segment_ids=tpu.SegmentIds(q=segment(q), kv=segment(k)),
            sm_scale=q.shape[-1] ** -0.5,
            block_sizes=sizes,
        )
    return out.transpose(0, 2, 1, 3)[:, : q.shape[1], :, : q.shape[3]]


def _largest_block(length: int, limit: int) -> int:
    """The largest multiple of 128 up to `limit` that divides `length`, itself a multiple of 128."""
    return max(b for b in range(LANES, limit + 1, LANES) if length % b == 0)


_FORMS: dict[Backend, Attend] = {"plain": plain, "lean": lean, "cudnn": cudnn, "pallas": pallas}

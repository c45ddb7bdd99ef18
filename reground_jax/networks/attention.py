"""One attention function, and the one place that chooses how it is computed.

`q` [B, T, N, D] attends over `k`, `v` [B, S, N, D], scale D ** -0.5, no mask, softmax in float32.

plain    einsum, softmax, einsum: materializes [B, N, T, S]
lean     one head and one block of queries at a time; at most `LOGITS` logits at once
blocked  all heads and one block of queries at a time; at most `BLOCKED_LOGITS` logits at once
cudnn    NVIDIA's fused flash attention (half precision), through jax.nn.dot_product_attention
pallas   JAX's Pallas flash attention kernel for TPU, with the padding it needs. It compiles for
         TPU v5e and v6e, but has not been run there
"""

import functools
from collections.abc import Callable
from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from reground_jax.basics.fields import check_name

Backend = Literal["plain", "lean", "blocked", "cudnn", "pallas"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Attend = Callable[..., Array]

# Maximum number of logits in memory at once: 10 MB in float32, about what a CPU core's cache or a
# TPU's vector memory holds, such as those of 512 queries over 4096 + 30 keys. If all heads of all
# samples fit, the plain form needs no more memory and has fewer steps.
LOGITS = 5 * 2**19
QUERIES = 512  # in a block of the lean form: larger ones spill registers on TPU, and caches on CPU
BLOCKED_LOGITS = 2**26  # 256 MB in float32: enough to keep a GPU busy
LANES = 128  # TPU register width: the Pallas kernel needs head width and lengths in multiples of it
LARGEST = 1408  # keys in a block of the Pallas kernel: 4096 + 30 keys are three of these
HOPPER = 9.0  # compute capability from which cuDNN supports heads wider than 128


def choose_backend(
    platform: str,
    dtype: DTypeLike,
    q_shape: tuple[int, ...],
    keys: int,
    capability: float | None = None,
) -> Backend:
    """The default for a platform ("cpu", "gpu", "tpu"), dtype and shape; a static decision.

    capability: compute capability of an NVIDIA GPU, None for other devices. cuDNN supports half
    precision and head widths that are multiples of 8, up to 128, and up to 256 from Hopper on. On
    TPU, lean takes fewer instructions than the Pallas form (`python -m benchmarks tpu-aot`).
    """
    batch, queries, heads, width = q_shape
    logits = batch * heads * queries * keys
    if platform == "gpu":
        widest = 0 if capability is None else 256 if capability >= HOPPER else 128
        if jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= widest:
            return "cudnn"
        return "plain" if logits <= BLOCKED_LOGITS else "blocked"
    return "plain" if logits <= LOGITS else "lean"


def check_backend(backend: Backend | str | None, platform: str) -> None:
    """Raise ValueError for an unknown backend, or one that the platform cannot run."""
    if backend is None:
        return
    check_name("attention backend", backend, BACKENDS)
    needed = {"cudnn": "gpu", "pallas": "tpu"}.get(backend, platform)
    if platform != needed:
        raise ValueError(
            f"attention backend {backend!r} runs only on {needed.upper()}, but the devices are "
            f"{platform.upper()}s: omit `attention` to use the default"
        )


@functools.cache
def attention_for(
    platform: str, backend: Backend | str | None = None, capability: float | None = None
) -> Attend:
    """`attend(q, k, v)` for a platform, or with one named backend everywhere.

    capability: as of `choose_backend`. The same arguments return the same function object, so it
    can be a static argument of a jitted program. Raises ValueError for an unknown backend.
    """
    if backend is not None:
        check_name("attention backend", backend, BACKENDS)

    @jax.named_scope("scores")
    def attend(
        q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
    ) -> Float[Array, "B T N D"]:
        chosen = backend or choose_backend(platform, q.dtype, q.shape, k.shape[1], capability)
        return _FORMS[cast(Backend, chosen)](q, k, v)

    return attend


def plain(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
) -> Float[Array, "B T N D"]:
    return jnp.einsum("bnts,bsnd->btnd", probabilities(q, k).astype(v.dtype), v)


def probabilities(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"]
) -> Float32[Array, "B N T S"]:
    """How much each query attends to each key, an attention map."""
    logits = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1)


def lean(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
) -> Float[Array, "B T N D"]:
    batch, queries, heads, width = q.shape
    count, block = _blocks(queries, min(QUERIES, LOGITS // k.shape[1]))

    def fold(x):  # [B, L, N, D] -> [B N, L, D]: the heads of each sample in sequence
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, -1, width)

    q = jnp.pad(fold(q * width**-0.5), ((0, 0), (0, count * block - queries), (0, 0)))
    # One more column of values, of ones, so that the product sums the weights as well.
    k, v = fold(k), jnp.pad(fold(v), ((0, 0), (0, 0), (0, 1)), constant_values=1)

    def one_head(head, out):
        own = [jax.lax.dynamic_index_in_dim(x, head, keepdims=False) for x in (k, v)]
        return jax.lax.fori_loop(0, count, functools.partial(one_block, head, *own), out)

    def one_block(head, k, v, i, out):
        place = (head, i * block, 0)
        (q,) = jax.lax.dynamic_slice(out, place, (1, block, width))
        # Keys first: on CPU, XLA vectorizes a reduction over a leading axis, but not over the last.
        # In memory, too: on TPU v6e, XLA else turns them around if they are a multiple of 128.
        logits = jnp.einsum("sd,td->st", k, q, preferred_element_type=jnp.float32)
        logits = with_layout_constraint(logits, Layout(major_to_minor=(0, 1)))
        weights = jnp.exp(logits - logits.max(0, keepdims=True)).astype(v.dtype)
        sums = jnp.einsum("sd,st->dt", v, weights, preferred_element_type=jnp.float32)
        # Dividing D x T outputs instead of S x T weights is exact and takes fewer divisions.
        values = (sums[:-1] / sums[-1:]).T.astype(out.dtype)
        return jax.lax.dynamic_update_slice(out, values[None], place)

    # The output takes the place of the queries: nothing is stacked, and nothing zeroed.
    out = jax.lax.fori_loop(0, batch * heads, one_head, q)
    return out[:, :queries].reshape(batch, heads, queries, width).transpose(0, 2, 1, 3)


def blocked(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
) -> Float[Array, "B T N D"]:
    batch, queries, heads, width = q.shape
    count, block = _blocks(queries, BLOCKED_LOGITS // (batch * heads * k.shape[1]))

    def one_block(i, out):
        place = (0, i * block, 0, 0)
        q = jax.lax.dynamic_slice(out, place, (batch, block, heads, width))
        return jax.lax.dynamic_update_slice(out, plain(q, k, v), place)

    padded = jnp.pad(q, ((0, 0), (0, count * block - queries), (0, 0), (0, 0)))
    return jax.lax.fori_loop(0, count, one_block, padded)[:, :queries]


def _blocks(queries: int, most: int) -> tuple[int, int]:
    """(number of blocks, queries in each), at most `most`: without padding where that is easy."""
    count = -(-queries // max(1, most))
    count = next((n for n in range(count, 2 * count) if queries % n == 0), count)
    return count, -(-queries // count)


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
        block_k_major=_largest_block(keys, LARGEST),
        block_k=_largest_block(keys, LARGEST),
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


_FORMS: dict[Backend, Attend] = {
    "plain": plain,
    "lean": lean,
    "blocked": blocked,
    "cudnn": cudnn,
    "pallas": pallas,
}

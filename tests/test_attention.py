"""Each form of attention against the plain one, and the choice between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.networks import attention
from reground_jax.networks.attention import attention_for, choose_backend
from tests.reference import relative_error


def tensors(batch, queries, keys, heads, width, dtype=jnp.float32):
    shapes = [(batch, queries, heads, width)] + [(batch, keys, heads, width)] * 2
    streams = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, s, dtype) for k, s in zip(streams, shapes, strict=True)]


def test_plain_attention_equals_jax():
    q, k, v = tensors(2, 24, 29, 2, 8)
    expected = jax.nn.dot_product_attention(q, k, v, implementation="xla")
    assert relative_error(attention.plain(q, k, v), expected) < 1e-6


@pytest.mark.parametrize("queries", [1, 24, 61])
@pytest.mark.parametrize("logits", [10, 300, 10**6])
def test_attention_in_blocks_equals_plain_whatever_the_block(monkeypatch, queries, logits):
    """10 logits: blocks of one query; 300: several blocks, the last one padded; 10**6: one."""
    monkeypatch.setattr(attention, "LOGITS", logits)
    monkeypatch.setattr(attention, "BLOCKED_LOGITS", 6 * logits)  # of two samples' three heads
    q, k, v = tensors(2, queries, 29, 3, 8)
    expected = attention.plain(q, k, v)
    assert relative_error(attention.lean(q, k, v), expected) < 1e-6
    assert relative_error(attention.blocked(q, k, v), expected) < 1e-6


def test_blocks_are_padded_only_where_no_near_number_of_them_divides():
    blocks = attention._blocks
    assert blocks(4096, 512) == (8, 512) and blocks(4096, 500) == (16, 256)
    assert blocks(61 * 63, 512) == (9, 427)
    assert blocks(61, 10) == (7, 9)  # a prime number: 2 of 63 are padding
    assert blocks(256, 512) == (1, 256) and blocks(5, 0) == (5, 1)


def test_blocked_attention_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(attention, "BLOCKED_LOGITS", 2 * 64 * 30)
    text = jax.jit(attention.blocked).lower(*tensors(1, 256, 30, 2, 8)).as_text()
    assert "tensor<1x2x64x30xf32>" in text  # one block of all heads
    assert "256x30xf32" not in text


def test_lean_attention_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(attention, "LOGITS", 64 * 30)
    q, k, v = tensors(1, 256, 30, 2, 8)
    text = jax.jit(attention.lean).lower(q, k, v).as_text()
    assert "tensor<30x64xf32>" in text  # one block of one head, keys first
    assert "256x30xf32" not in text and "30x256xf32" not in text


@pytest.mark.parametrize(
    ("queries", "keys", "width"),
    [(128, 128, 40), (130, 160, 40), (64, 94, 80), (16, 46, 160)],  # SD1.x's head widths
)
def test_the_pallas_form_equals_plain_in_interpret_mode(queries, keys, width):
    from jax.experimental.pallas import tpu as pltpu

    q, k, v = tensors(1, queries, keys, 2, width)
    with pltpu.force_tpu_interpret_mode():
        ours = attention.pallas(q, k, v)
    assert relative_error(ours, attention.plain(q, k, v)) < 1e-5  # padding is exactly invisible


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("queries", "keys", "width"), [(4096, 4126, 40), (1024, 1054, 80), (256, 286, 160)]
)
def test_cudnn_attention_equals_plain(queries, keys, width):
    q, k, v = tensors(2, queries, keys, 8, width, jnp.bfloat16)
    expected = attention.plain(*(x.astype(jnp.float32) for x in (q, k, v)))
    assert relative_error(attention.cudnn(q, k, v).astype(jnp.float32), expected) < 0.02  # bfloat16


def test_the_default_backend_follows_platform_dtype_and_shape():
    large, small = (2, 4096, 8, 40), (1, 64, 8, 160)
    assert choose_backend("cpu", jnp.float32, large, 4126) == "lean"
    assert choose_backend("cpu", jnp.float32, small, 94) == "plain"
    assert choose_backend("gpu", jnp.bfloat16, large, 4126, 8.0) == "cudnn"
    assert choose_backend("gpu", jnp.bfloat16, large, 4126) == "blocked"  # not NVIDIA's
    assert choose_backend("gpu", jnp.float32, large, 4126, 9.0) == "blocked"  # cuDNN takes halves
    wide = (2, 256, 8, 160)  # heads that cuDNN supports from Hopper on
    assert choose_backend("gpu", jnp.bfloat16, wide, 286, 9.0) == "cudnn"
    assert choose_backend("gpu", jnp.bfloat16, wide, 286, 8.0) == "plain"
    assert choose_backend("gpu", jnp.bfloat16, (1, 64, 1, 512), 64, 9.0) == "plain"  # the VAE's
    assert choose_backend("tpu", jnp.bfloat16, large, 4126) == "lean"  # Pallas is opt-in


def test_a_named_backend_is_used_everywhere_and_a_wrong_name_is_refused():
    q, k, v = tensors(1, 8, 8, 1, 8)
    forced = jax.jit(attention_for("cpu", "lean")).lower(q, k, v).as_text()
    assert "while" in forced
    assert "while" not in jax.jit(attention_for("cpu")).lower(q, k, v).as_text()
    assert attention_for("cpu", "lean") is attention_for("cpu", "lean")  # one jit cache entry
    with pytest.raises(ValueError, match="flash.*plain, lean, blocked, cudnn, pallas"):
        attention_for("cpu", "flash")  # type: ignore[arg-type]


def test_gradients_pass_through_the_plain_and_lean_forms():
    q, k, v = tensors(1, 12, 10, 2, 8)

    def loss(form, q):
        return jnp.square(form(q, k, v)).sum()

    one, other = (
        jax.grad(functools.partial(loss, form))(q) for form in (attention.plain, attention.lean)
    )
    np.testing.assert_allclose(one, other, atol=1e-5)

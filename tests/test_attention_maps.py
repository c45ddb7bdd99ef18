"""The attention maps that the U-Net returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.networks.attention import plain
from reground_jax.networks.grounding.text import Grounding
from reground_jax.networks.places import Place, places
from reground_jax.settings import Wiring
from tests.models import module, tiny_model

MODEL = tiny_model()
PLACES = places(MODEL.config.unet)
TOKENS = 5


def call(wiring: Wiring, watch=frozenset(), attend=plain, dtype=jnp.float32, gate=1.0):
    config, rng = MODEL.config.unet, np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    boxes = jnp.tile(jnp.array([0.1, 0.2, 0.7, 0.9]), (2, TOKENS, 1))
    grounding = Grounding(boxes, normal(2, TOKENS, config.text_width), jnp.ones((2, TOKENS)))
    unet = module(MODEL, "unet")
    text = normal(2, 7, config.text_width).astype(dtype)
    prepared = unet.prepare(
        text, unet.tokens(grounding, dtype=text.dtype), jnp.array([500.0]), wiring=wiring
    )
    x = normal(2, 8, 8, config.in_channels)
    options = {"wiring": wiring, "attend": attend}
    return unet.watched(
        x, prepared, watch, gate=None if gate is None else jnp.float32(gate), **options
    )


@pytest.mark.parametrize("wiring", ["sequential", "parallel"])
def test_maps_are_the_softmax_of_what_each_attention_gets(wiring):
    """`attend` sees the calls in order of execution: self, fuser, text in every block."""
    seen: list[jax.Array] = []

    def recording(q, k, v):
        logits = jnp.einsum("btnd,bsnd->bnts", q, k) / q.shape[-1] ** 0.5
        seen.append(jax.nn.softmax(logits, axis=-1))
        return plain(q, k, v)

    output, maps = call(wiring, frozenset(PLACES), recording)
    assert list(maps) == list(PLACES) and len(seen) == len(PLACES)
    for place, expected in zip(PLACES, seen, strict=True):
        np.testing.assert_allclose(maps[place], expected, atol=1e-6)
        cells = maps[place].shape[2]
        keys = {"self": cells, "fuser": cells + TOKENS, "text": 7}[place.attention]
        assert maps[place].shape[3] == keys
    np.testing.assert_array_equal(output, call(wiring)[0])  # the same output, watched or not


def test_only_what_is_named_and_computed_is_returned():
    text = [place for place in PLACES if place.attention == "text"]
    fuser = next(place for place in PLACES if place.attention == "fuser")
    assert list(call("parallel", frozenset(text[:1]))[1]) == text[:1]
    assert list(call("parallel", frozenset([fuser, text[0]]), gate=None)[1]) == text[:1]
    assert call("parallel", frozenset([Place("up_9", 0, 0, "self")]))[1] == {}


def test_maps_are_float32_in_half_precision():
    output, maps = call("parallel", frozenset(PLACES), dtype=jnp.bfloat16)
    assert output.dtype == jnp.bfloat16
    for attention in maps.values():
        assert attention.dtype == jnp.float32
        np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)

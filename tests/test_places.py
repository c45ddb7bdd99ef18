"""The attention layers of a U-Net have names, which are their scopes in a profile."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from reground_jax.config import UNetConfig
from reground_jax.networks.attention import attention_for
from reground_jax.networks.grounding.text import Grounding
from reground_jax.networks.places import Place, places
from reground_jax.networks.unet import UNet
from tests.models import TINY

DEEP = dataclasses.replace(TINY.unet, transformer_layers=(1, 2))


def lowered(config: UNetConfig) -> str:
    """The text of one call's program, with the scope of every operation."""
    unet: Any = nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(unet)

    def call(params, x, text, *grounding):
        unet = nnx.merge(graph, params)
        prepared = unet.prepare(
            text,
            unet.tokens(Grounding(*grounding), dtype=text.dtype),
            jnp.ones(1),
            wiring="parallel",
        )
        gate = jnp.float32(1)
        return unet(x, prepared, gate=gate, wiring="parallel", attend=attention_for("cpu"))

    shapes = ((2, 8, 8, 4), (2, 7, 12), (2, 3, 4), (2, 3, 12), (2, 3))
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return jax.jit(call).lower(params, *arguments).as_text(debug_info=True)


@pytest.mark.parametrize("config", [TINY.unet, DEEP], ids=["one block", "two blocks"])
def test_every_attention_is_in_the_scope_of_its_place(config):
    program = lowered(config)
    for place in places(config):
        assert f"/unet/{place}/scores/" in program, place
    for scope in ("prepare/grounding_tokens", "prepare/time_table", "unet/down_0/resnet_0"):
        assert f"/{scope}/" in program, scope


def test_places_are_in_execution_order_and_distinct():
    found = places(DEEP)
    assert len(set(found)) == len(found)
    assert found[0] == Place("down_0", transformer=0, block=0, attention="self")
    # One level down, the middle with the blocks of the lowest level, and one level up.
    assert [str(place) for place in found if place.attention == "text"] == [
        "down_0/transformer_0/block_0/cross_attention",
        "mid_0/transformer_0/block_0/cross_attention",
        "mid_0/transformer_0/block_1/cross_attention",
        "up_1/transformer_0/block_0/cross_attention",
        "up_1/transformer_1/block_0/cross_attention",
    ]
    plain = places(dataclasses.replace(DEEP, grounding=None))
    assert {place.attention for place in plain} == {"self", "text"}

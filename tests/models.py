"""Our models made from the tiny reference models by the real converter, for tests to share."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from reground_jax.config import (
    CLIPTextConfig,
    ModelConfig,
    NoiseSchedule,
    TextEncoderConfig,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)
from reground_jax.convert.conversion import convert
from reground_jax.convert.tokenizers import build_tokenizer
from reground_jax.model import Model, network, random_params, read_model
from reground_jax.storage.checkpoint import unflatten
from tests import reference


@functools.cache
def converted(name: str, form: str = "today") -> tuple[Model, Any, Path]:
    """(our model, diffusers' pipeline of the same weights, our model directory)."""
    folder = Path(tempfile.mkdtemp(prefix=f"reground-{name}-"))
    theirs = reference.write_diffusers(folder / "diffusers", name, form=form)
    convert(folder / "diffusers", folder / "ours")
    return read_model(folder / "ours"), theirs, folder / "ours"


def module(model: Model, name: str) -> Any:
    """A fresh module, so that changing it affects no other test."""
    return nnx.merge(network(model.config, name)[0], jax.tree.map(jnp.array, model.params[name]))


TINY = ModelConfig(
    unet=UNetConfig(
        block_channels=(16, 24),
        layers_per_block=(1, 1),
        num_heads=(2, 2),
        down_attention=(True, False),
        up_attention=(False, True),
        text_width=12,
        norm_groups=4,
        sample_size=8,
    ),
    vae=VAEConfig(block_channels=(8, 8), layers_per_block=1, norm_groups=4),
    text_encoders=(
        TextEncoderConfig(
            CLIPTextConfig(
                vocab_size=1000, width=12, num_layers=1, num_heads=2, mlp_width=24, eos_token_id=999
            ),
            TokenizerConfig(bos_token_id=998, eos_token_id=999, pad_token_id=999),
        ),
    ),
    schedule=NoiseSchedule(  # as Stable Diffusion 1.4's scheduler file says
        steps_offset=1, set_alpha_to_one=False, clip_sample=False, skip_prk_steps=True
    ),
)


# Changes of `tiny_model` for tests that are not about levels: it compiles in 2/3 of the time.
# Programs depend on the numbers of steps and images, so tests that share these, too, compile once,
# whatever their file: PLMS with 10 steps and one image.
ONE_LEVEL = dict(
    block_channels=(16,),
    layers_per_block=(1,),
    num_heads=(2,),
    down_attention=(True,),
    up_attention=(True,),
)


@functools.cache
def tiny_model(**unet_changes) -> Model:
    """The smallest model with every part, random, for tests of what surrounds the networks."""
    config = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, **unet_changes))
    folder = Path(tempfile.mkdtemp(prefix="reground-tiny-"))
    reference.write_tokenizer(folder / "tokenizer")
    tokenizer_json = build_tokenizer(folder / "tokenizer").json
    return Model(config, unflatten(random_params(config, seed=1)), tokenizer_json, {})

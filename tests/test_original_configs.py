"""Translates configs of the original code and of single files to ours."""

import dataclasses
from pathlib import Path

import pytest

from reground_jax.config import (
    CLIPTextConfig,
    ModelConfig,
    NoiseSchedule,
    TextEncoderConfig,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)
from reground_jax.convert import original_configs, single_file, sources
from reground_jax.convert.rules import UnsupportedConfig

DATA = Path(__file__).parent / "data"


def test_the_original_text_box_checkpoint_is_translated():
    parts, config = sources.open_original(DATA / "original_text_box_tiny.bin")
    assert original_configs.translate(config, parts) == ModelConfig(
        unet=UNetConfig(
            block_channels=(32, 64, 64, 64),
            num_heads=(4, 4, 4, 4),
            text_width=48,
            sample_size=8,
        ),
        vae=VAEConfig(block_channels=(32, 32, 32, 32), layers_per_block=1),
        # The U-Net's number of heads, since 48 is not the width of ViT-L/14.
        text_encoders=(
            TextEncoderConfig(
                CLIPTextConfig(
                    vocab_size=256, width=48, num_layers=2, num_heads=4, mlp_width=96,
                    eos_token_id=255,
                ),
                TokenizerConfig(bos_token_id=0, eos_token_id=255, pad_token_id=255),
            ),
        ),
        schedule=NoiseSchedule(
            timestep_spacing="leading",
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
            skip_prk_steps=True,
        ),
    )  # fmt: skip


def test_the_original_inpainting_checkpoint_has_nine_channels_and_three_levels():
    parts, config = sources.open_original(DATA / "original_inpaint_tiny.bin")
    unet = original_configs.translate(config, parts).unet
    assert unet.in_channels == parts["model"].shape("input_blocks.0.0.weight")[1] == 9
    assert unet.inpainting
    assert unet.down_attention == (True, True, False)
    assert unet.up_attention == (False, True, True)


def test_attention_resolutions_are_down_sampling_factors():
    parts, config = sources.open_original(DATA / "original_text_box_tiny.bin")
    config["model"]["params"]["attention_resolutions"] = [8, 2]
    unet = original_configs.translate(config, parts).unet
    assert unet.down_attention == (False, True, False, True)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("model", {"fuser_type": "gatedSA2"}, "fuser_type is 'gatedSA2', expected 'gatedSA'"),
        ("model", {"grounding_downsampler": {"target": "x"}}, "grounding_downsampler is"),
        (
            "model",
            {"grounding_tokenizer": {"target": "x.sketch_grounding_net.PositionNet"}},
            "expected KIND_grounding_net.PositionNet with a KIND of text, text_image",
        ),
        (
            "model",
            {
                "grounding_tokenizer": {
                    "target": "x.text_grounding_net.PositionNet",
                    "params": {"in_dim": 768, "out_dim": 48},
                }
            },
            "in_dim is 768, expected 48",
        ),
        ("model", {"transformer_depth": 2}, "transformer_depth is 2"),
        ("model", {"in_channels": 9}, "in_channels is 9, expected 4"),
        ("model", {"novelty": 1}, "field novelty"),
        ("diffusion", {"beta_schedule": "cosine"}, "beta_schedule is 'cosine'"),
        ("autoencoder", {"embed_dim": 8}, "embed_dim is 8, expected 4"),
        ("autoencoder", {"ddconfig": {}}, "VAE config lacks ch, ch_mult"),
    ],
)
def test_an_original_checkpoint_that_is_not_built_is_refused(part, change, message):
    parts, config = sources.open_original(DATA / "original_text_box_tiny.bin")
    config[part]["params"] |= change
    with pytest.raises(UnsupportedConfig, match=message):
        original_configs.translate(config, parts)


def test_attention_inside_the_original_vaes_levels_is_refused():
    parts, config = sources.open_original(DATA / "original_text_box_tiny.bin")
    config["autoencoder"]["params"]["ddconfig"]["attn_resolutions"] = [16]
    with pytest.raises(UnsupportedConfig, match=r"attn_resolutions is \[16\].* an empty list"):
        original_configs.translate(config, parts)


def test_the_text_encoder_of_stable_diffusion_1_has_12_heads_and_the_real_special_tokens():
    shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "text_model.embeddings.position_embedding.weight": (77, 768),
    } | {f"text_model.encoder.layers.{n}.mlp.fc1.weight": (3072, 768) for n in range(12)}
    text = single_file.text_config(shapes, unet_heads=8)
    assert text == TextEncoderConfig(CLIPTextConfig(eos_token_id=49407), TokenizerConfig())


def as_single_file(parts):
    """The arrays of an original checkpoint under the names of a single-file Stable Diffusion."""
    prefixes = {
        "model": "model.diffusion_model.",
        "autoencoder": "first_stage_model.",
        "text_encoder": "cond_stage_model.",
    }
    arrays = {
        prefix + key: parts[part]._arrays[key]
        for part, prefix in prefixes.items()
        for key in parts[part].keys()
    }
    return sources.TensorFile(arrays, "single file")


@pytest.mark.parametrize("name", ["text_box", "inpaint"])
def test_the_shapes_of_a_single_file_tell_what_the_config_tells(name):
    parts, config = sources.open_original(DATA / f"original_{name}_tiny.bin")
    expected = original_configs.translate(config, parts)
    heads = expected.unet.num_heads[0]
    model = single_file.from_single_file(as_single_file(parts), num_heads=heads)
    # The size that it was trained at leaves no trace in the arrays.
    unet = dataclasses.replace(expected.unet, sample_size=64)
    assert model == dataclasses.replace(expected, unet=unet)


def test_a_single_file_of_another_model_is_refused():
    parts, _ = sources.open_original(DATA / "original_text_box_tiny.bin")
    arrays = as_single_file(parts)._arrays
    without = {key: array for key, array in arrays.items() if ".attn2." not in key}
    for wrong in (without, {"model.diffusion_model.x": arrays.popitem()[1]}):
        with pytest.raises(UnsupportedConfig, match="is no U-Net of Stable Diffusion"):
            single_file.from_single_file(sources.TensorFile(wrong, "single file"))

"""Translates configs of the diffusers layout to ours."""

import dataclasses
import inspect
import json
from contextlib import nullcontext

import diffusers
import pytest
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from reground_jax.config import (
    CLIPTextConfig,
    ModelConfig,
    NoiseSchedule,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)
from reground_jax.convert import config_fields, configs
from reground_jax.convert.configs import UnsupportedConfig

# As in the config files of CompVis/stable-diffusion-v1-4 and stabilityai/stable-diffusion-2.
SD1_UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.2.2",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD2_UNET = SD1_UNET | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "num_class_embeds": None,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SD1_VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SD1_TEXT = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "transformers_version": "4.21.0.dev0",
    "vocab_size": 49408,
}
SD2_TEXT = SD1_TEXT | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
SD1_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def test_stable_diffusion_1_4_is_our_default():
    assert configs.unet_config(SD1_UNET | {"attention_type": "gated"}) == UNetConfig()
    assert configs.vae_config(SD1_VAE) == VAEConfig()
    assert configs.text_config(SD1_TEXT) == CLIPTextConfig()
    assert configs.noise_schedule(SD1_SCHEDULER) == NoiseSchedule(
        steps_offset=1, set_alpha_to_one=False, clip_sample=False, skip_prk_steps=True
    )


def test_stable_diffusion_2_has_heads_per_level_gelu_and_a_wider_text():
    unet = configs.unet_config(SD2_UNET)
    assert unet == UNetConfig(
        num_heads=(5, 10, 20, 20), text_width=1024, sample_size=96, grounding=None
    )
    for field in ({"attention_type": "gated"}, {"use_gated_attention": True}):  # igligen-sd2.1
        assert configs.unet_config(SD2_UNET | field).grounding == "text"
    text = configs.text_config(SD2_TEXT)
    assert text == CLIPTextConfig(
        width=1024, num_layers=23, num_heads=16, mlp_width=4096, activation="gelu"
    )
    fields = SD1_SCHEDULER | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    assert configs.noise_schedule(fields).prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("attention_type", "grounding"), [("gated", "text"), ("default", None), (None, None)]
)
def test_attention_type_tells_gligen_from_plain(attention_type, grounding):
    fields = SD1_UNET | {"attention_type": attention_type}
    assert configs.unet_config(fields).grounding == grounding
    assert configs.unet_config(SD1_UNET).grounding is None


def test_nine_input_channels_are_an_inpainting_model():
    assert configs.unet_config(SD1_UNET | {"in_channels": 9}).inpainting
    assert not configs.unet_config(SD1_UNET).inpainting


def test_fields_that_a_unet_may_give_once_or_per_level():
    fields = SD1_UNET | {
        "layers_per_block": [1, 2, 2, 1],
        "cross_attention_dim": [768] * 4,
        "transformer_layers_per_block": [1] * 4,
        "only_cross_attention": [False] * 4,
        "sample_size": [64, 64],
    }
    unet = configs.unet_config(fields)
    assert unet.layers_per_block == (1, 2, 2, 1) and unet.text_width == 768
    assert unet.sample_size == 64
    assert unet.transformer_layers is None  # one each
    for layers in (2, [2] * 4):
        unet = configs.unet_config(SD1_UNET | {"transformer_layers_per_block": layers})
        assert unet.transformer_layers == (2,) * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_type": "other"}, "attention_type is 'other', expected 'gated'"),
        ({"in_channels": 5}, "in_channels is 5, expected 4 .* or 9 for inpainting"),
        ({"only_cross_attention": [True] * 4}, "only_cross_attention is "),
        ({"dual_cross_attention": True}, "dual_cross_attention is True, expected False"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep', expected None"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is 'scale_shift'"),
        ({"num_attention_heads": 8}, "num_attention_heads is 8"),
        ({"transformer_layers_per_block": [[1, 2]] * 4}, "transformer_layers_per_block"),
        ({"mid_block_type": None}, "mid_block_type is None"),
        ({"down_block_types": ["AttnDownBlock2D"]}, "down_block_types is 'AttnDownBlock2D'"),
        ({"cross_attention_dim": [768, 1024]}, "the same one everywhere"),
        ({"sample_size": [64, 96]}, r"sample_size is \[64, 96\]"),
        ({"_class_name": "UNet3DConditionModel"}, "_class_name is 'UNet3DConditionModel'"),
        ({"act_fn": "gelu", "freq_shift": 1}, "act_fn is 'gelu'.*; freq_shift is 1"),
    ],
)
def test_a_unet_that_is_not_built_is_refused_by_field_and_value(change, message):
    with pytest.raises(UnsupportedConfig, match=message):
        configs.unet_config(SD1_UNET | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "DownEncoderBlock2D for each of 4"),
        ({"out_channels": 4}, r"out_channels is 4, expected 3 \(in_channels\)"),
        ({"shift_factor": 0.1}, r"shift_factor is 0\.1"),
        ({"use_quant_conv": False}, "use_quant_conv is False, expected True"),
        ({"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny'"),
        ({"novelty": 1}, "field novelty"),
    ],
)
def test_a_vae_that_is_not_built_is_refused(change, message):
    with pytest.raises(UnsupportedConfig, match=message):
        configs.vae_config(SD1_VAE | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'quick_gelu' or 'gelu'"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06, expected 1e-05"),
        ({"model_type": "clip"}, "model_type is 'clip', expected 'clip_text_model'"),
        ({"architectures": ["T5EncoderModel"]}, "architectures is"),
        ({"eos_token_id": 50000}, "eos_token_id is 50000"),
        ({"vocab_size": 1000, "eos_token_id": 49407}, r"below vocab_size \(1000\)"),
        ({"relative_attention_num_buckets": 32}, "field relative_attention_num_buckets"),
    ],
)
def test_a_text_encoder_that_is_not_built_is_refused(change, message):
    with pytest.raises(UnsupportedConfig, match=message):
        configs.text_config(SD1_TEXT | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained_betas": [0.1]}, r"trained_betas is \[0\.1\], expected None"),
        ({"thresholding": True}, "thresholding is True"),
        ({"rescale_betas_zero_snr": True}, "prediction_type is None, expected 'v_prediction'"),
        ({"original_inference_steps": 0}, "original_inference_steps is 0, expected a whole number"),
        ({"timestep_scaling": 0}, "timestep_scaling is 0, expected a number"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample', expected 'epsilon' or "),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is 'squaredcos_cap_v2'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name is 'FlowMatch"),
        ({"novelty": 1}, "field novelty"),
    ],
)
def test_a_schedule_that_is_not_built_is_refused(change, message):
    with pytest.raises(UnsupportedConfig, match=message):
        configs.noise_schedule(SD1_SCHEDULER | change)


def test_the_end_of_a_text_is_its_largest_id_only_where_an_old_config_says_2():
    assert configs.text_config(SD1_TEXT | {"eos_token_id": 49407}).eos_token_id == 49407
    assert configs.text_config(SD1_TEXT | {"eos_token_id": 2}).eos_token_id is None
    absent = {key: value for key, value in SD1_TEXT.items() if key != "eos_token_id"}
    assert configs.text_config(absent).eos_token_id == 49407  # transformers' default


def advised(scheduler: str):
    """LCM's file comes with a warning of how to use such a model; other warnings are errors."""
    return pytest.warns(match="use --solver lcm") if scheduler == "LCMScheduler" else nullcontext()


@pytest.mark.parametrize("name", sorted(config_fields.SCHEDULER_BETAS))
def test_what_a_schedule_leaves_out_is_the_classs_betas_or_silence(name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    with advised(name):
        schedule = configs.noise_schedule({"_class_name": name})
    for field in ("beta_start", "beta_end", "beta_schedule", "prediction_type"):
        assert getattr(schedule, field) == parameters[field].default
    silent = dataclasses.asdict(schedule)
    for field in ("timestep_spacing", "steps_offset", "set_alpha_to_one", "clip_sample"):
        assert silent[field] is None


def defaults(kind):
    """All config fields of a diffusers class, at their defaults, as `save_config` writes them."""
    parameters = inspect.signature(kind.__init__).parameters.items()
    fields = {name: value.default for name, value in parameters if name != "self"}
    return json.loads(json.dumps(fields, default=str))


def test_every_field_that_diffusers_and_transformers_write_is_known():
    unet = configs.unet_config(defaults(UNet2DConditionModel))
    assert unet == UNetConfig(text_width=1280, grounding=None)
    vae = configs.vae_config(defaults(AutoencoderKL))
    assert vae == VAEConfig(block_channels=(64,), layers_per_block=1)
    text = configs.text_config(transformers.CLIPTextConfig().to_dict())
    assert (text.width, text.num_heads, text.eos_token_id) == (512, 8, 49407)
    for name in config_fields.SCHEDULER_BETAS:
        fields = {"_class_name": name, **defaults(getattr(diffusers, name))}
        with advised(name):
            configs.noise_schedule(fields)


def test_an_empty_config_means_the_class_defaults():
    assert configs.unet_config({}) == UNetConfig(text_width=1280, grounding=None)
    assert configs.vae_config({}) == VAEConfig(block_channels=(64,), layers_per_block=1)
    defaults = transformers.CLIPTextConfig()
    text = configs.text_config({})
    assert text.width == defaults.hidden_size and text.mlp_width == defaults.intermediate_size
    assert text.num_heads == defaults.num_attention_heads


def write_folder(path, unet=SD1_UNET, text=SD1_TEXT):
    contents = {
        "unet/config.json": unet,
        "vae/config.json": SD1_VAE,
        "text_encoder/config.json": text,
        "scheduler/scheduler_config.json": SD1_SCHEDULER,
    }
    for name, fields in contents.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps(fields))
    return path


def test_a_folder_gives_one_model(tmp_path):
    unet = SD1_UNET | {"attention_type": "gated"}
    model = configs.from_folder(write_folder(tmp_path, unet), TokenizerConfig(max_length=100))
    assert model.unet == UNetConfig() and model.vae == VAEConfig()
    assert model.text_encoder.tokenizer == TokenizerConfig(
        max_length=77
    )  # limited to the text encoder's
    assert ModelConfig.from_json(json.loads(json.dumps(model.to_json()))) == model


def test_parts_of_different_models_are_refused(tmp_path):
    with pytest.raises(UnsupportedConfig, match="embeddings of width 1024, .* writes width 768"):
        configs.from_folder(write_folder(tmp_path, SD2_UNET), TokenizerConfig())
    unet = SD1_UNET | {"in_channels": 8, "out_channels": 8}
    with pytest.raises(UnsupportedConfig, match="8 output channels, but the VAE has 4 latent"):
        configs.from_folder(write_folder(tmp_path, unet), TokenizerConfig())
    folder = write_folder(tmp_path, text=SD1_TEXT | {"vocab_size": 1000})
    with pytest.raises(UnsupportedConfig, match=r"\(49406, 49407, 49407\), .* has 1000 tokens"):
        configs.from_folder(folder, TokenizerConfig())
    folder = write_folder(tmp_path, text=SD1_TEXT | {"eos_token_id": 7})
    with pytest.raises(UnsupportedConfig, match="ends texts with 7: use the tokenizer"):
        configs.from_folder(folder, TokenizerConfig())


def test_a_missing_or_broken_file_is_named(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"vae/config\.json is not JSON"):
        configs.from_folder(folder, TokenizerConfig())
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"vae/config\.json is missing"):
        configs.from_folder(folder, TokenizerConfig())

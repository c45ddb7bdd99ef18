"""Our configs as other people's, for `export`: the inverses of `configs` and `original_configs`.

What a form cannot say is found by translating the result back, before anything is written.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reground_jax.config import (
    CLIPTextConfig,
    CLIPVisionConfig,
    ModelConfig,
    NoiseSchedule,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)
from reground_jax.kinds import MAP_KINDS

from . import configs, original_configs, single_file
from .sources import TensorFile
from .stored import StoredArray

MADE_WITH = "0.30.0"  # of diffusers, whose fields these are
ATTENTION = {"text": "gated", "text_image": "gated-text-image"}
PIPELINES = {
    "text": "StableDiffusionGLIGENPipeline",
    "text_image": "StableDiffusionGLIGENTextImagePipeline",
}
TIMESTEPS = (  # which every solver of GLIGEN's code works out by itself
    "timestep_spacing", "steps_offset", "set_alpha_to_one", "clip_sample", "clip_sample_range",
    "skip_prk_steps", "original_inference_steps", "timestep_scaling",
)  # fmt: skip
ORIGINAL = "ldm.modules.diffusionmodules"

Fields = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


# ---- diffusers


def diffusers_fields(config: ModelConfig) -> dict[str, Fields]:
    """The config of each part of a diffusers folder, by the part's name.

    Raises ValueError that names what diffusers has no field for.
    """
    kind = config.unet.grounding
    if kind not in ATTENTION:
        raise ValueError(
            f"diffusers has no pipeline for models of kind {kind}: export it in the form gligen"
        )
    text = config.text_encoder
    fields = {
        "unet": _unet(config.unet),
        "vae": _vae(config.vae),
        "text_encoder": _text(text.network, text.tokenizer),
        "scheduler": _scheduler(config.schedule),
    }
    _check("U-Net", configs.unet_config, fields["unet"], config.unet)
    _check("autoencoder", configs.vae_config, fields["vae"], config.vae)
    _check("text encoder", configs.text_config, fields["text_encoder"], text.network)
    _check("noise schedule", configs.noise_schedule, fields["scheduler"], config.schedule)
    if config.image_encoder is not None:
        image = config.image_encoder
        fields["image_encoder"] = _vision(image)
        _check("image encoder", configs.vision_config, fields["image_encoder"], image)
        fields["image_project"] = {
            "_class_name": "CLIPImageProjection", "hidden_size": image.projection_width,
        }  # fmt: skip
    return fields


def _check(part: str, back: Callable[[Fields], Any], fields: Fields, ours: Any) -> None:
    """Raises ValueError unless the fields say what our config says."""
    try:
        found = back(fields)
    except ValueError as error:
        raise ValueError(f"the {part} cannot be exported in this form: {error}") from error
    if lost := [
        field.name
        for field in dataclasses.fields(ours)
        if getattr(found, field.name) != getattr(ours, field.name)
    ]:
        raise ValueError(
            f"the {part} cannot be exported in this form, which cannot say its {', '.join(lost)}"
        )


def _unet(config: UNetConfig) -> Fields:
    levels = len(config.block_channels)
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": MADE_WITH,
        "act_fn": "silu",
        "attention_head_dim": list(config.num_heads),  # the number of heads, despite its name
        "attention_type": ATTENTION[str(config.grounding)],
        "block_out_channels": list(config.block_channels),
        "center_input_sample": False,
        "cross_attention_dim": config.text_width,
        "down_block_types": _blocks("DownBlock2D", config.down_attention),
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": list(config.layers_per_block),
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
        "transformer_layers_per_block": list(config.transformer_layers or (1,) * levels),
        "up_block_types": _blocks("UpBlock2D", config.up_attention),
        "use_linear_projection": linear_projections(config),
    }


def linear_projections(config: UNetConfig) -> bool:
    """Whether a transformer begins and ends with linear layers, as in SD2.x, or 1x1 convolutions.

    Both compute the same; it follows from the heads, whose number SD1.x has at every level.
    """
    return len(set(config.num_heads)) > 1


def _blocks(name: str, attention: tuple[bool, ...]) -> list[str]:
    return [f"CrossAttn{name}" if there else name for there in attention]


def _vae(config: VAEConfig) -> Fields:
    levels = len(config.block_channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": MADE_WITH,
        "act_fn": "silu",
        "block_out_channels": list(config.block_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.image_channels,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _text(config: CLIPTextConfig, tokens: TokenizerConfig) -> Fields:
    return _clip(config) | {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": 2 if config.eos_token_id is None else config.eos_token_id,  # the largest id
        "pad_token_id": tokens.pad_token_id,
    }


def _vision(config: CLIPVisionConfig) -> Fields:
    return _clip(config) | {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "projection_dim": config.projection_width,
    }


def _clip(config: CLIPTextConfig | CLIPVisionConfig) -> Fields:
    return {
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": 1e-5,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
    }


def _scheduler(schedule: NoiseSchedule) -> Fields:
    """Whatever solver made the images: it is chosen by the user here, and can be changed there."""
    fields = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": MADE_WITH,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.beta_schedule,
        "beta_start": schedule.beta_start,
        "num_train_timesteps": schedule.num_train_steps,
        "prediction_type": schedule.prediction_type,
    }
    given = {name: getattr(schedule, name) for name in TIMESTEPS}
    return fields | {name: value for name, value in given.items() if value is not None}


# ---- GLIGEN's own code


def original_fields(config: ModelConfig, unet: Shapes, text: Shapes) -> Fields:
    """The config that GLIGEN's code stores with a checkpoint (its config_dict).

    unet, text: shapes of their arrays by original name. Raises ValueError that names what its code
    cannot build.
    """
    kind, schedule = config.unet.grounding, config.schedule
    ours = dataclasses.replace(config.unet, first_conv=False)  # a file of its own
    model, autoencoder = _original_unet(config.unet), _original_vae(config.vae)
    diffusion = {
        "linear_start": schedule.beta_start,
        "linear_end": schedule.beta_end,
        "timesteps": schedule.num_train_steps,
    }
    arrays = {n: StoredArray(Path(), 0, np.dtype(np.float32), shape) for n, shape in unet.items()}
    file = TensorFile(arrays, "the exported model")
    _check("U-Net", lambda given: original_configs.unet_config(given, file), model, ours)
    _check("autoencoder", original_configs.vae_config, autoencoder, config.vae)
    timesteps = original_configs.noise_schedule(diffusion)
    same = dataclasses.replace(schedule, **{name: getattr(timesteps, name) for name in TIMESTEPS})
    _check("noise schedule", original_configs.noise_schedule, diffusion, same)
    _check_text(config, text)
    fields: Fields = {
        "model": {"target": f"{ORIGINAL}.openaimodel.UNetModel", "params": model},
        "autoencoder": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": autoencoder},
        "diffusion": {"target": "ldm.models.diffusion.ldm.LatentDiffusion", "params": diffusion},
        "text_encoder": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
        "grounding_tokenizer_input": {  # sic
            "target": f"grounding_input.{kind}_grounding_tokinzer_input.GroundingNetInput",
        },
    }
    if kind in MAP_KINDS:
        fields["grounding_downsampler_input"] = {
            "target": f"grounding_input.{kind}_grounding_downsampler_input.GroundingDSInput"
        }
    return fields


def _check_text(config: ModelConfig, shapes: Shapes) -> None:
    """GLIGEN's code has CLIP's ViT-L/14; its shape tells the rest."""
    text = config.text_encoder.network
    if text.eos_token_id is None:  # the largest id
        text = dataclasses.replace(text, eos_token_id=text.vocab_size - 1)

    def back(_: Fields) -> CLIPTextConfig:
        return single_file.text_config(shapes, config.unet.num_heads[0]).network

    _check("text encoder", back, {}, text)


def _original_unet(config: UNetConfig) -> Fields:
    first = config.block_channels[0]
    kind, width = config.grounding, config.text_width
    net: Fields = {"out_dim": width}
    if kind in ("text", "text_image"):
        net["in_dim"] = width
    if kind == "keypoint":
        net["max_persons_per_image"] = config.persons
    params: Fields = {
        "image_size": config.sample_size,
        "in_channels": config.out_channels,  # what inpainting and maps add is not counted
        "out_channels": config.out_channels,
        "model_channels": first,
        "attention_resolutions": [2**i for i, there in enumerate(config.down_attention) if there],
        "num_res_blocks": config.layers_per_block[0],
        "channel_mult": [channels // first for channels in config.block_channels],
        "num_heads": config.num_heads[0],
        "transformer_depth": 1,
        "context_dim": width,
        "fuser_type": "gatedSA",
        "use_checkpoint": True,
        "inpaint_mode": config.inpainting,
    }
    if config.map is not None:
        net["resize_input"] = config.map.side
        down: Fields = {"resize_input": 4 * config.sample_size}
        if config.map.downsampler:
            down["out_dim"] = config.map.channels
        if config.map.classes is not None:
            net["in_dim"] = down["in_dim"] = config.map.classes
        params["grounding_downsampler"] = {
            "target": f"{ORIGINAL}.{kind}_grounding_downsampler.GroundingDownsampler",
            "params": down,
        }
    target = f"{ORIGINAL}.{kind}_grounding_net.PositionNet"
    return params | {"grounding_tokenizer": {"target": target, "params": net}}


def _original_vae(config: VAEConfig) -> Fields:
    first = config.block_channels[0]
    return {
        "scale_factor": config.scaling_factor,
        "embed_dim": config.latent_channels,
        "ddconfig": {
            "double_z": True,
            "z_channels": config.latent_channels,
            "resolution": 256,
            "in_channels": config.image_channels,
            "out_ch": config.image_channels,
            "ch": first,
            "ch_mult": [channels // first for channels in config.block_channels],
            "num_res_blocks": config.layers_per_block,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    }

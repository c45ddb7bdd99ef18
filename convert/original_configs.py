"""Translates the config of an original GLIGEN checkpoint to ours.

It is the YAML of the original repository, as read by `pickles.plain`: for each part, a `target` (a
class in the original code) and its `params`. It does not describe the text encoder; shapes do.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from reground_jax.config import ModelConfig, NoiseSchedule, UNetConfig, VAEConfig

from .config_fields import CHANNELS, HEADS, LAYERS, NO_DROPOUT, WIDTH
from .configs import check_together
from .original_grounding import grounding_fields
from .rules import (
    FLAG,
    Rule,
    UnsupportedConfig,
    check_fields,
    listed,
    real,
    refused,
    whole,
)
from .single_file import SCALE, text_config
from .sources import TensorFile

PART = Rule("a part of the config", lambda value: isinstance(value, Mapping))
UNET_TRANSLATED = {
    "image_size": whole(1, 1024),
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "model_channels": CHANNELS,
    "attention_resolutions": listed(whole(1, 2**16), least=0),
    "num_res_blocks": LAYERS,
    "channel_mult": listed(whole(1, 64)),
    "num_heads": HEADS,
    "context_dim": WIDTH,
    "inpaint_mode": FLAG,
    "grounding_tokenizer": PART,
    "grounding_downsampler": PART,
}
UNET_REQUIRED = (
    "image_size in_channels out_channels model_channels attention_resolutions num_res_blocks "
    "context_dim"
).split()
UNET_NEUTRAL = {
    "conv_resample": (True,),
    "dims": (2,),
    "fuser_type": ("gatedSA",),
    "transformer_depth": (1,),
    "use_scale_shift_norm": (False,),
}
UNET_IGNORED = {"dropout": NO_DROPOUT, "use_checkpoint": "trades time for memory in training"}

VAE_TRANSLATED = {
    "ch": CHANNELS,
    "ch_mult": listed(whole(1, 64)),
    "num_res_blocks": LAYERS,
    "z_channels": CHANNELS,
    "in_channels": CHANNELS,
    "out_ch": CHANNELS,
}
VAE_NEUTRAL = {
    "attn_resolutions": (),  # attention only in the middle block
    "attn_type": ("vanilla",),
    "double_z": (True,),
    "give_pre_end": (False,),
    "resamp_with_conv": (True,),
    "tanh_out": (False,),
    "use_linear_attn": (False,),
}
VAE_IGNORED = {"dropout": NO_DROPOUT, "resolution": "the network is convolutional"}

DIFFUSION_TRANSLATED = {
    "linear_start": real(1e-9, 0.999),
    "linear_end": real(1e-9, 0.999),
    "timesteps": whole(1, 10**4),
}
DIFFUSION_NEUTRAL = {
    "beta_schedule": ("linear",),
    "given_betas": (None,),
    "parameterization": ("eps",),
}


def translate(config: Mapping[str, Any], arrays: Mapping[str, TensorFile]) -> ModelConfig:
    """All configs of an original GLIGEN checkpoint; both arguments from `sources.open_original`.

    Raises UnsupportedConfig for a checkpoint that is not one of GLIGEN's ten or is otherwise
    unsupported.
    """
    parts = ("model", "autoencoder", "diffusion")
    if missing := [part for part in parts if part not in config]:
        raise UnsupportedConfig(f"the checkpoint's config has no {', '.join(missing)} part")
    unet, vae, diffusion = (_params(part, config[part]) for part in parts)
    network = unet_config(unet, arrays["model"])
    text = text_config(arrays["text_encoder"].shapes(), network.num_heads[0])
    return check_together(
        ModelConfig(
            unet=network,
            vae=vae_config(vae),
            text_encoders=(text,),
            schedule=noise_schedule(diffusion),
        )
    )


def _require(where: str, given: Mapping[str, Any], fields: Iterable[str]) -> None:
    if missing := [field for field in fields if given.get(field) is None]:
        raise UnsupportedConfig(f"{where} lacks {', '.join(missing)}")


def _params(name: str, part: Any) -> dict[str, Any]:
    """The parameters of a part of the config, or of a nested part."""
    params = part.get("params") if isinstance(part, Mapping) else part
    params = {} if params is None else params
    if not isinstance(params, Mapping) or not all(isinstance(key, str) for key in params):
        raise refused("original config", name, part, "a class with named parameters")
    return dict(params)


def unet_config(params: Mapping[str, Any], arrays: TensorFile) -> UNetConfig:
    """`ldm.modules.diffusionmodules.openaimodel.UNetModel`."""
    where = "original U-Net config"
    given = check_fields(where, params, UNET_TRANSLATED, UNET_NEUTRAL, UNET_IGNORED)
    _require(where, given, UNET_REQUIRED)
    multipliers = given.get("channel_mult", (1, 2, 4, 8))
    # attention_resolutions are downsampling factors, not resolutions.
    attention = [2**level in given["attention_resolutions"] for level in range(len(multipliers))]
    latent = given["out_channels"]
    if given["in_channels"] != latent:
        raise refused(where, "in_channels", given["in_channels"], f"{latent}")
    grounding = grounding_fields(given, arrays)
    inpainting = bool(given.get("inpaint_mode"))
    if inpainting and "map" in grounding:
        raise refused(where, "inpaint_mode", True, f"false with {grounding['grounding']}")
    return UNetConfig(
        in_channels=2 * latent + 1 if inpainting else latent,
        out_channels=latent,
        block_channels=tuple(given["model_channels"] * m for m in multipliers),
        layers_per_block=(given["num_res_blocks"],) * len(multipliers),
        num_heads=(given.get("num_heads", 8),) * len(multipliers),
        down_attention=tuple(attention),
        up_attention=tuple(reversed(attention)),
        text_width=given["context_dim"],
        sample_size=given["image_size"],
        inpainting=inpainting,
        **grounding,
    )


def vae_config(params: Mapping[str, Any]) -> VAEConfig:
    """`ldm.models.autoencoder.AutoencoderKL`."""
    where = "original VAE config"
    _require(where, params, ("ddconfig",))
    inner = _params("ddconfig", {"params": params["ddconfig"]})
    given = check_fields(where, inner, VAE_TRANSLATED, VAE_NEUTRAL, VAE_IGNORED)
    _require(where, given, VAE_TRANSLATED)
    for field, value, wanted in (
        ("embed_dim", params.get("embed_dim", given["z_channels"]), given["z_channels"]),
        ("out_ch", given["out_ch"], given["in_channels"]),
    ):
        if value != wanted:
            raise refused(where, field, value, wanted)
    scale = params.get("scale_factor", 0.18215)
    if not SCALE.accepts(scale):
        raise refused(where, "scale_factor", scale, SCALE.text)
    return VAEConfig(
        image_channels=given["in_channels"],
        latent_channels=given["z_channels"],
        block_channels=tuple(given["ch"] * m for m in given["ch_mult"]),
        layers_per_block=given["num_res_blocks"],
        scaling_factor=scale,
    )


def noise_schedule(params: Mapping[str, Any]) -> NoiseSchedule:
    """`ldm.models.diffusion.ldm.LatentDiffusion`, with the timesteps of the original PLMS.

    The original's "linear" is linear in the square root of beta: diffusers' scaled_linear.
    """
    given = check_fields(
        "original diffusion config",
        params,
        DIFFUSION_TRANSLATED,
        DIFFUSION_NEUTRAL,
        {"cosine_s": "not cosine"},
    )
    return NoiseSchedule(
        num_train_steps=given.get("timesteps", 1000),
        beta_start=given.get("linear_start", 1e-4),
        beta_end=given.get("linear_end", 2e-2),
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        skip_prk_steps=True,
    )

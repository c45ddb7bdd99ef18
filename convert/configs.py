"""Translates config files of the diffusers layout to our config dataclasses.

Every field is translated, must have a supported value (NEUTRAL), or is ignored for a stated reason
(IGNORED). Any other field or value is an error, and all errors are reported together: silently
skipping a field could give a model that runs but draws something else. See `rules.check_fields`.

Fields that a file leaves out get the defaults of diffusers' UNet2DConditionModel, AutoencoderKL and
schedulers, and of transformers' CLIPTextConfig, CLIPVisionConfig and CLIPConfig.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from reground_jax.basics.wording import shown
from reground_jax.config import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    ModelConfig,
    NoiseSchedule,
    TextEncoderConfig,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)
from reground_jax.kinds import GroundingKind

from . import config_fields as known
from .rules import UnsupportedConfig, check_fields, read_json, refused

CLIP = "CLIP config"
Config = TypeVar("Config", CLIPTextConfig, CLIPVisionConfig)


def from_folder(folder: str | Path, tokenizer: TokenizerConfig) -> ModelConfig:
    """All configs of a diffusers model, checked for consistency.

    Raises ValueError for a file that is missing or not JSON, and UnsupportedConfig.
    """
    folder = Path(folder)
    text = text_config(read_json(folder / "text_encoder" / "config.json"))
    return check_together(
        ModelConfig(
            unet=unet_config(read_json(folder / "unet" / "config.json")),
            vae=vae_config(read_json(folder / "vae" / "config.json")),
            text_encoders=(TextEncoderConfig(text, tokenizer),),
            schedule=noise_schedule(read_json(folder / "scheduler" / "scheduler_config.json")),
        )
    )


def check_together(model: ModelConfig) -> ModelConfig:
    """The same model, with the tokenizer's length limited to the text encoder's.

    Raises UnsupportedConfig if the parts do not belong together.
    """
    unet, vae, text = model.unet, model.vae, model.text_encoder.network
    tokens = model.text_encoder.tokenizer
    if unet.out_channels != vae.latent_channels:
        raise UnsupportedConfig(
            f"the U-Net has {unet.out_channels} output channels, but the VAE has "
            f"{vae.latent_channels} latent channels: they are not from the same model"
        )
    if unet.text_width != text.width:
        raise UnsupportedConfig(
            f"the U-Net reads text embeddings of width {unet.text_width}, but the text encoder "
            f"writes width {text.width}: they are not from the same model"
        )
    ids = (tokens.bos_token_id, tokens.eos_token_id, tokens.pad_token_id)
    if max(ids) >= text.vocab_size or text.eos_token_id not in (None, tokens.eos_token_id):
        raise UnsupportedConfig(
            f"the tokenizer's special tokens (begin, end, padding) are {ids}, but the text encoder "
            f"has {text.vocab_size} tokens and ends texts with "
            f"{'the largest id' if text.eos_token_id is None else text.eos_token_id}: "
            "use the tokenizer that belongs to this text encoder"
        )
    length = min(tokens.max_length, text.max_length)
    tokens = dataclasses.replace(tokens, max_length=length)
    return dataclasses.replace(model, text_encoders=(TextEncoderConfig(text, tokens),))


def unet_config(fields: Mapping[str, Any]) -> UNetConfig:
    """`unet/config.json`, a diffusers UNet2DConditionModel with or without GLIGEN's fusers."""
    where = "U-Net config"
    given = check_fields(
        where, fields, known.UNET_TRANSLATED, known.UNET_NEUTRAL, known.UNET_IGNORED
    )
    _check_class(where, fields, ("UNet2DConditionModel",))
    channels = tuple(given.get("block_out_channels", (320, 640, 1280, 1280)))
    levels = len(channels)
    in_channels, out_channels = given.get("in_channels", 4), given.get("out_channels", 4)
    check_in_channels(where, in_channels, out_channels)
    return UNetConfig(
        in_channels=in_channels,
        out_channels=out_channels,
        block_channels=channels,
        layers_per_block=_per_level(given.get("layers_per_block", 2), levels),
        # Despite its name, this is the number of heads; diffusers keeps the name for old files.
        num_heads=_per_level(given.get("attention_head_dim", 8), levels),
        down_attention=_attention(
            "down_block_types", given, "DownBlock2D", (True,) * (levels - 1) + (False,)
        ),
        up_attention=_attention(
            "up_block_types", given, "UpBlock2D", (False,) + (True,) * (levels - 1)
        ),
        text_width=_one(where, "cross_attention_dim", given.get("cross_attention_dim", 1280)),
        norm_groups=given.get("norm_num_groups", 32),
        sample_size=_one(where, "sample_size", given.get("sample_size", 64)),
        grounding=_grounding(given),
        inpainting=in_channels != out_channels,
        transformer_layers=_per_level(given.get("transformer_layers_per_block", 1), levels),
    )


def check_in_channels(where: str, in_channels: int, latent: int) -> None:
    """Raises UnsupportedConfig for a U-Net with inputs other than latents or inpainting latents."""
    if in_channels == 2 * latent:
        raise UnsupportedConfig(
            f"{where}: in_channels is {in_channels}, as in models that edit images by instruction "
            f"(InstructPix2Pix): use a model with {latent}, or {2 * latent + 1} for inpainting"
        )
    if in_channels not in (latent, 2 * latent + 1):
        rule = f"{latent} (out_channels), or {2 * latent + 1} for inpainting"
        raise refused(where, "in_channels", in_channels, rule)


def _grounding(given: Mapping[str, Any]) -> GroundingKind | None:
    """The fusers' kind of grounding, if any, from the current field or the fork's."""
    by_type = given.get("attention_type")
    by_flag = given.get("use_gated_attention")
    if by_type is None:
        return "text" if by_flag else None
    if by_flag is not None and by_flag != (by_type != "default"):
        raise UnsupportedConfig(
            f"U-Net config: attention_type {by_type!r} and use_gated_attention {by_flag} "
            "contradict each other; remove the wrong one"
        )
    kinds: dict[str, GroundingKind] = {"gated": "text", "gated-text-image": "text_image"}
    return kinds.get(by_type)


def _attention(
    field: str, given: Mapping[str, Any], plain: str, default: tuple[bool, ...]
) -> tuple[bool, ...]:
    """Which blocks have cross-attention, like "CrossAttnDownBlock2D" for plain "DownBlock2D"."""
    if field not in given:
        return default
    names = {plain: False, f"CrossAttn{plain}": True}
    for name in given[field]:
        if name not in names:
            raise refused("U-Net config", field, name, " or ".join(names))
    return tuple(names[name] for name in given[field])


def vae_config(fields: Mapping[str, Any]) -> VAEConfig:
    """`vae/config.json`, a diffusers AutoencoderKL."""
    where = "VAE config"
    given = check_fields(where, fields, known.VAE_TRANSLATED, known.VAE_NEUTRAL, known.VAE_IGNORED)
    _check_class(where, fields, ("AutoencoderKL",))
    channels = tuple(given.get("block_out_channels", (64,)))
    for field, block in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        names = tuple(given.get(field, (block,)))
        if names != (block,) * len(channels):
            raise refused(where, field, list(names), f"{block} for each of {len(channels)} levels")
    image_channels = given.get("in_channels", 3)
    if (out := given.get("out_channels", 3)) != image_channels:
        raise refused(where, "out_channels", out, f"{image_channels} (in_channels)")
    groups = given.get("norm_num_groups", 32)
    if any(width % groups for width in channels):
        raise refused(where, "norm_num_groups", groups, f"a common divisor of {list(channels)}")
    return VAEConfig(
        image_channels=image_channels,
        latent_channels=given.get("latent_channels", 4),
        block_channels=channels,
        layers_per_block=given.get("layers_per_block", 1),
        norm_groups=groups,
        scaling_factor=given.get("scaling_factor", 0.18215),
    )


def text_config(fields: Mapping[str, Any], where: str = "text encoder config") -> CLIPTextConfig:
    """`text_encoder/config.json`, a transformers CLIPTextModel. where: for errors.

    The pooled output is taken at the first `eos_token_id`. Configs from before transformers 4.30
    have 2, which is not the end-of-text id of any CLIP vocabulary; it stands for the largest id.
    """
    given = check_fields(
        where, fields, known.TEXT_TRANSLATED, known.TEXT_NEUTRAL, known.TEXT_IGNORED
    )
    vocab_size, eos = given.get("vocab_size", 49408), given.get("eos_token_id", 49407)
    if eos != 2 and eos >= vocab_size:
        raise refused(where, "eos_token_id", eos, f"2, or an id below vocab_size ({vocab_size})")
    width, heads = given.get("hidden_size", 512), given.get("num_attention_heads", 8)
    if width % heads:
        raise refused(where, "num_attention_heads", heads, f"a divisor of hidden_size ({width})")
    return CLIPTextConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=given.get("num_hidden_layers", 12),
        num_heads=heads,
        mlp_width=given.get("intermediate_size", 2048),
        max_length=given.get("max_position_embeddings", 77),
        activation=given.get("hidden_act", "quick_gelu"),
        eos_token_id=None if eos == 2 else eos,
    )


def vision_config(fields: Mapping[str, Any]) -> CLIPVisionConfig:
    """The `config.json` of a transformers CLIPVisionModelWithProjection, or of a full CLIPModel.

    A full model's projection has the width that its own projection_dim says, whatever the one in
    its vision_config.
    """
    if not is_full_clip(fields):
        return _vision_config(fields, "image encoder config")
    given = check_fields(
        CLIP, fields, known.CLIP_TRANSLATED, known.CLIP_NEUTRAL, known.CLIP_MODEL_IGNORED
    )
    width = {"projection_width": given.get("projection_dim", 512)}
    found = _part_of_clip(fields, "vision_config", _vision_config, width)
    return dataclasses.replace(found, **width)


def clip_config(fields: Mapping[str, Any]) -> CLIPConfig:
    """The `config.json` of a full transformers CLIPModel."""
    vision = vision_config(fields)
    return CLIPConfig(
        _part_of_clip(fields, "text_config", text_config, {"eos_token_id": None}), vision
    )


def _part_of_clip(
    fields: Mapping[str, Any],
    name: str,
    read: Callable[[Mapping[str, Any], str], Config],
    unlike: Mapping[str, Any],
) -> Config:
    """A part of a full CLIPModel, which old files have in two forms: transformers takes the latter.

    read: (form, where) -> config. unlike: fields in which the forms may differ.
    """
    names = [form for form in (name, f"{name}_dict") if fields.get(form) is not None]
    for form in names:
        if not isinstance(fields[form], Mapping):
            raise refused(CLIP, form, fields[form], "a JSON object")
    found = [read(fields[form], f"{CLIP}, {form}") for form in names] or [read({}, CLIP)]
    if len({dataclasses.replace(one, **unlike) for one in found}) > 1:
        raise UnsupportedConfig(
            f"{CLIP}: {name} and {name}_dict contradict each other; remove the wrong one"
        )
    return found[-1]


def is_full_clip(fields: Mapping[str, Any]) -> bool:
    """Whether a config is that of a CLIPModel, text transformer included."""
    return "vision_config" in fields or fields.get("model_type") == "clip"


def _vision_config(fields: Mapping[str, Any], where: str) -> CLIPVisionConfig:
    given = check_fields(
        where, fields, known.VISION_TRANSLATED, known.VISION_NEUTRAL, known.VISION_IGNORED
    )
    width, heads = given.get("hidden_size", 768), given.get("num_attention_heads", 12)
    if width % heads:
        raise refused(where, "num_attention_heads", heads, f"a divisor of hidden_size ({width})")
    side = _one(where, "image_size", given.get("image_size", 224))
    patch = _one(where, "patch_size", given.get("patch_size", 32))
    if side % patch:
        raise refused(where, "patch_size", patch, f"a divisor of image_size ({side})")
    return CLIPVisionConfig(
        width=width,
        num_layers=given.get("num_hidden_layers", 12),
        num_heads=heads,
        mlp_width=given.get("intermediate_size", 3072),
        patch_size=patch,
        image_size=side,
        projection_width=given.get("projection_dim", 512),
        activation=given.get("hidden_act", "quick_gelu"),
    )


def noise_schedule(fields: Mapping[str, Any]) -> NoiseSchedule:
    """`scheduler/scheduler_config.json`: the noise schedule and the timestep settings.

    The solver that the file names does not matter, since the caller chooses one; but betas that the
    file leaves out get the defaults of its class. Timestep settings that it leaves out stay None,
    since each solver has its own defaults, as with diffusers' `from_config`. Warns about solver
    options that are ignored, and about LCM, without whose solver such a model draws nothing good.
    """
    where = "scheduler config"
    given = check_fields(
        where,
        fields,
        known.SCHEDULER_TRANSLATED,
        known.SCHEDULER_NEUTRAL,
        {*known.SCHEDULER_IGNORED, *known.SCHEDULER_OURS},
    )
    _check_class(where, fields, tuple(known.SCHEDULER_BETAS))
    _warn_of_choices(fields)
    name = fields.get("_class_name") or "PNDMScheduler"
    beta_start, beta_end, beta_schedule = known.SCHEDULER_BETAS[name]
    prediction, zero_snr = given.get("prediction_type"), given.get("rescale_betas_zero_snr", False)
    if zero_snr and prediction != "v_prediction":
        raise refused(
            where, "prediction_type", prediction, "'v_prediction', because rescale_betas_zero_snr "
            "is true: where there is only noise, epsilon says nothing about the image",
        )  # fmt: skip
    return NoiseSchedule(
        num_train_steps=given.get("num_train_timesteps", 1000),
        beta_start=given.get("beta_start", beta_start),
        beta_end=given.get("beta_end", beta_end),
        beta_schedule=given.get("beta_schedule", beta_schedule),
        prediction_type=prediction or "epsilon",
        timestep_spacing=given.get("timestep_spacing"),
        steps_offset=given.get("steps_offset"),
        set_alpha_to_one=given.get("set_alpha_to_one"),
        clip_sample=given.get("clip_sample"),
        clip_sample_range=given.get("clip_sample_range"),
        skip_prk_steps=given.get("skip_prk_steps"),
        rescale_betas_zero_snr=zero_snr,
        original_inference_steps=given.get("original_inference_steps"),
        timestep_scaling=given.get("timestep_scaling"),
    )


def _warn_of_choices(fields: Mapping[str, Any]) -> None:
    """Warns about solver options in the file that differ from ours, and names the solver to use."""
    ours = dict(known.SCHEDULER_OURS)
    if fields.get("rescale_betas_zero_snr"):
        ours["lambda_min_clipped"] = (-math.inf,)
    others = [
        f"{field} {shown(fields[field])} (here {values[0]!r})"
        for field, values in ours.items()
        if field in fields and fields[field] not in values
    ]
    nearest = _nearest_solver(fields)
    if others:
        advice = f"; {nearest} comes nearest" if nearest else ""
        warnings.warn(
            f"scheduler config: ignoring {', '.join(others)}, since these options follow from the "
            f"solver: choose one with --solver{advice}",
            stacklevel=3,
        )
    elif nearest == "lcm":
        warnings.warn(
            "scheduler config: a LCMScheduler is for models distilled to draw in a few steps: use "
            "--solver lcm --steps 4 to 8 --guidance-scale 1 to 2",
            stacklevel=3,
        )


def _nearest_solver(fields: Mapping[str, Any]) -> str | None:
    """The solver that does what the file chooses, or most of it."""
    if fields.get("algorithm_type") in ("sde-dpmsolver++", "sde-dpmsolver"):
        return "dpmpp_2m_sde"
    if fields.get("use_karras_sigmas"):
        return "dpmpp_2m_karras"
    return known.SCHEDULER_SOLVERS.get(fields.get("_class_name", ""))


def _check_class(where: str, fields: Mapping[str, Any], supported: tuple[str, ...]) -> None:
    name = fields.get("_class_name")
    if name is not None and name not in supported:
        raise refused(where, "_class_name", name, ", ".join(supported))


def _per_level(value: int | list[int], levels: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * levels


def _one(where: str, field: str, value: Any) -> int:
    """A number that a file may also repeat for every level or side."""
    values = set(value) if isinstance(value, list | tuple) else {value}
    if len(values) != 1:
        raise refused(where, field, value, "one number, or the same one everywhere")
    return values.pop()

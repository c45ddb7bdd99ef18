"""Other people's config files as our config dataclasses: the diffusers layout.

Every field is translated, or must have the one value that is built (NEUTRAL), or is ignored for the
reason given (IGNORED). Any other field or value is an error, all of them at once: a field that is
passed over in silence is a model that runs and draws something else.

Defaults are those of diffusers' UNet2DConditionModel and AutoencoderKL, transformers'
CLIPTextConfig and diffusers' schedulers, for a file that leaves a field out.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reground_jax.config import (
    CLIPTextConfig,
    ModelConfig,
    NoiseSchedule,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)

from . import config_fields as known


class UnsupportedConfig(ValueError):
    """The config asks for something that is not built, or has a field that is not known."""


def from_folder(folder: str | Path, tokenizer: TokenizerConfig) -> ModelConfig:
    """All configs of a diffusers model, checked to fit together.

    Raises ValueError for a file that is missing or no JSON, and UnsupportedConfig.
    """
    folder = Path(folder)
    return check_together(
        ModelConfig(
            unet=unet_config(read_json(folder / "unet" / "config.json")),
            vae=vae_config(read_json(folder / "vae" / "config.json")),
            text_encoder=text_config(read_json(folder / "text_encoder" / "config.json")),
            schedule=noise_schedule(read_json(folder / "scheduler" / "scheduler_config.json")),
            tokenizer=tokenizer,
        )
    )


def check_together(model: ModelConfig) -> ModelConfig:
    """The same model, its tokenizer cut to the text encoder's length.

    Raises UnsupportedConfig if its parts are not of one model.
    """
    unet, vae, text, tokens = model.unet, model.vae, model.text_encoder, model.tokenizer
    if unet.out_channels != vae.latent_channels:
        raise UnsupportedConfig(
            f"the U-Net has {unet.out_channels} output channels and the VAE "
            f"{vae.latent_channels} latent channels: they are not of one model"
        )
    if unet.text_width != text.width:
        raise UnsupportedConfig(
            f"the U-Net reads texts of width {unet.text_width} and the text encoder writes "
            f"width {text.width}: they are not of one model"
        )
    ids = (tokens.bos_token_id, tokens.eos_token_id, tokens.pad_token_id)
    if max(ids) >= text.vocab_size or text.eos_token_id not in (None, tokens.eos_token_id):
        raise UnsupportedConfig(
            f"the tokenizer's special tokens (begin, end, padding) are {ids}, but the text encoder "
            f"has {text.vocab_size} tokens and ends texts with "
            f"{'the largest id' if text.eos_token_id is None else text.eos_token_id}: "
            "give the tokenizer that belongs to this text encoder"
        )
    length = min(tokens.max_length, text.max_length)
    return dataclasses.replace(model, tokenizer=dataclasses.replace(tokens, max_length=length))


def unet_config(fields: Mapping[str, Any]) -> UNetConfig:
    """`unet/config.json`, a diffusers UNet2DConditionModel with or without GLIGEN's fusers."""
    check_fields("U-Net", fields, known.UNET_TRANSLATED, known.UNET_NEUTRAL, known.UNET_IGNORED)
    _check_class("U-Net", fields, ("UNet2DConditionModel",))
    channels = tuple(fields.get("block_out_channels", (320, 640, 1280, 1280)))
    levels = len(channels)
    in_channels, out_channels = fields.get("in_channels", 4), fields.get("out_channels", 4)
    if in_channels not in (out_channels, 2 * out_channels + 1):
        raise refused(
            "U-Net",
            "in_channels",
            in_channels,
            f"{out_channels} (out_channels), or {2 * out_channels + 1} for inpainting",
        )
    return UNetConfig(
        in_channels=in_channels,
        out_channels=out_channels,
        block_channels=channels,
        layers_per_block=_per_level(fields.get("layers_per_block", 2), levels),
        # Despite its name this is the number of heads; diffusers keeps the name for old files.
        num_heads=_per_level(fields.get("attention_head_dim", 8), levels),
        down_attention=_attention(
            "down_block_types", fields, "DownBlock2D", (True,) * (levels - 1) + (False,)
        ),
        up_attention=_attention(
            "up_block_types", fields, "UpBlock2D", (False,) + (True,) * (levels - 1)
        ),
        text_width=_one("U-Net", "cross_attention_dim", fields.get("cross_attention_dim", 1280)),
        norm_groups=fields.get("norm_num_groups", 32),
        sample_size=_one("U-Net", "sample_size", fields.get("sample_size") or 64),
        grounded=_grounded(fields.get("attention_type", "default")),
    )


def _grounded(attention_type: str | None) -> bool:
    if attention_type == "gated-text-image":
        raise UnsupportedConfig(
            "U-Net config: attention_type 'gated-text-image' (grounding by reference images) is "
            "not supported; use a text-box checkpoint, whose attention_type is 'gated'"
        )
    if attention_type not in ("gated", "default", None):
        raise refused(
            "U-Net", "attention_type", attention_type, "'gated' (GLIGEN), 'default' (plain)"
        )
    return attention_type == "gated"


def _attention(
    field: str, fields: Mapping[str, Any], plain: str, default: tuple[bool, ...]
) -> tuple[bool, ...]:
    """Which blocks are of the CrossAttn kind, e.g. "CrossAttnDownBlock2D" for "DownBlock2D"."""
    if field not in fields:
        return default
    names = {plain: False, f"CrossAttn{plain}": True}
    for name in fields[field]:
        if name not in names:
            raise refused("U-Net", field, name, " and ".join(names))
    return tuple(names[name] for name in fields[field])


def vae_config(fields: Mapping[str, Any]) -> VAEConfig:
    """`vae/config.json`, a diffusers AutoencoderKL."""
    check_fields("VAE", fields, known.VAE_TRANSLATED, known.VAE_NEUTRAL, known.VAE_IGNORED)
    _check_class("VAE", fields, ("AutoencoderKL",))
    channels = tuple(fields.get("block_out_channels", (64,)))
    for field, block in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        names = tuple(fields.get(field, (block,)))
        if names != (block,) * len(channels):
            raise refused("VAE", field, list(names), f"{block} for each of {len(channels)} levels")
    image_channels = fields.get("in_channels", 3)
    if fields.get("out_channels", 3) != image_channels:
        raise refused(
            "VAE", "out_channels", fields["out_channels"], f"in_channels, {image_channels}"
        )
    return VAEConfig(
        image_channels=image_channels,
        latent_channels=fields.get("latent_channels", 4),
        block_channels=channels,
        layers_per_block=fields.get("layers_per_block", 1),
        norm_groups=fields.get("norm_num_groups", 32),
        scaling_factor=fields.get("scaling_factor", 0.18215),
    )


def text_config(fields: Mapping[str, Any]) -> CLIPTextConfig:
    """`text_encoder/config.json`, a transformers CLIPTextModel.

    The pooled output is read at the first `eos_token_id`. Configs from before transformers 4.30 say
    eos_token_id 2, which is no end of text in any CLIP vocabulary: they mean the largest id.
    """
    check_fields(
        "text encoder", fields, known.TEXT_TRANSLATED, known.TEXT_NEUTRAL, known.TEXT_IGNORED
    )
    activation = fields.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise refused("text encoder", "hidden_act", activation, "'quick_gelu', 'gelu'")
    vocab_size = fields.get("vocab_size", 49408)
    eos = fields.get("eos_token_id", 49407)
    if eos != 2 and not (isinstance(eos, int) and 0 <= eos < vocab_size):
        raise refused(
            "text encoder", "eos_token_id", eos, f"2, or an id below vocab_size, {vocab_size}"
        )
    return CLIPTextConfig(
        vocab_size=vocab_size,
        width=fields.get("hidden_size", 512),
        num_layers=fields.get("num_hidden_layers", 12),
        num_heads=fields.get("num_attention_heads", 8),
        mlp_width=fields.get("intermediate_size", 2048),
        max_length=fields.get("max_position_embeddings", 77),
        activation=activation,
        eos_token_id=None if eos == 2 else eos,
    )


def noise_schedule(fields: Mapping[str, Any]) -> NoiseSchedule:
    """`scheduler/scheduler_config.json`: the noise, and what the file says of time steps.

    Which solver the file names does not matter, the caller names one; but the betas that a file
    leaves out are its class's. Fields of time steps that it leaves out stay None: each solver has
    its own defaults, as with diffusers' `from_config`.
    """
    check_fields(
        "scheduler",
        fields,
        known.SCHEDULER_TRANSLATED,
        known.SCHEDULER_NEUTRAL,
        known.SCHEDULER_IGNORED,
    )
    _check_class("scheduler", fields, tuple(known.SCHEDULER_BETAS))
    beta_start, beta_end = known.SCHEDULER_BETAS[fields.get("_class_name", "PNDMScheduler")]
    for field, supported in known.SCHEDULER_CHOICES.items():
        if field in fields and fields[field] not in supported:
            raise refused("scheduler", field, fields[field], ", ".join(map(repr, supported)))
    return NoiseSchedule(
        num_train_steps=fields.get("num_train_timesteps", 1000),
        beta_start=fields.get("beta_start", beta_start),
        beta_end=fields.get("beta_end", beta_end),
        beta_schedule=fields.get("beta_schedule", "linear"),
        prediction_type=fields.get("prediction_type", "epsilon"),
        timestep_spacing=fields.get("timestep_spacing"),
        steps_offset=fields.get("steps_offset"),
        set_alpha_to_one=fields.get("set_alpha_to_one"),
        clip_sample=fields.get("clip_sample"),
        clip_sample_range=fields.get("clip_sample_range"),
        skip_prk_steps=fields.get("skip_prk_steps"),
    )


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError that names the file if it is missing or something else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is missing; download the whole folder again")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}, expected an object of fields")
    return fields


def check_fields(
    what: str,
    fields: Mapping[str, Any],
    translated: Iterable[str],
    neutral: Mapping[str, tuple[Any, ...]],
    ignored: Mapping[str, str],
) -> None:
    """Raises UnsupportedConfig with every unknown field and every value that is not neutral."""
    wrong = []
    for field, value in fields.items():
        if field.startswith("_") or field in translated or field in ignored:
            continue
        if field not in neutral:
            wrong.append(f"field {field} ({value!r}) is not known")
        elif not _is_among(value, neutral[field]):
            supported = " or ".join(map(repr, neutral[field])) or "an empty list"
            wrong.append(f"{field} is {value!r}, supported is {supported}")
    if wrong:
        raise UnsupportedConfig(
            f"{what} config: {'; '.join(wrong)}. Such a model is not built here: use one without it"
        )


def _is_among(value: Any, supported: tuple[Any, ...]) -> bool:
    """A list, one entry per level, is fine if each entry is."""
    values = value if isinstance(value, list | tuple) else [value]
    return all(entry in supported for entry in values)


def _check_class(what: str, fields: Mapping[str, Any], supported: tuple[str, ...]) -> None:
    name = fields.get("_class_name")
    if name is not None and name not in supported:
        raise refused(what, "_class_name", name, ", ".join(supported))


def refused(what: str, field: str, value: Any, supported: Any) -> UnsupportedConfig:
    """The error for one value, to be raised."""
    return UnsupportedConfig(f"{what} config: {field} is {value!r}, supported is {supported}")


def _per_level(value: int | list[int], levels: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * levels


def _one(what: str, field: str, value: Any) -> int:
    """A number that a file may also give once per level or side, all equal."""
    values = set(value) if isinstance(value, list | tuple) else {value}
    if len(values) != 1:
        raise refused(what, field, value, "one number, or the same one everywhere")
    return values.pop()

"""The configs of the original code: of a GLIGEN checkpoint, and of a single-file Stable Diffusion.

A GLIGEN checkpoint carries the YAML of the original repository, as read by `pickles.plain`: per
part a `target` (a class of the original code) and its `params`. It says nothing of the text
encoder, and a single-file Stable Diffusion says nothing of anything: there, array shapes do.
"""

import re
from collections.abc import Mapping
from typing import Any

from reground_jax.config import (
    CLIPTextConfig,
    ModelConfig,
    NoiseSchedule,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)

from .configs import UnsupportedConfig, check_fields, check_together, refused
from .sources import TensorFile

REAL_VOCABULARY = 49408  # tokens of CLIP's own vocabulary; its last two begin and end a text
VIT_L_WIDTH, VIT_L_HEADS = 768, 12
NO_DROPOUT = "dropout is off outside training"

UNET_TRANSLATED = (
    "image_size",
    "in_channels",
    "out_channels",
    "model_channels",
    "attention_resolutions",
    "num_res_blocks",
    "channel_mult",
    "num_heads",
    "context_dim",
    "inpaint_mode",
    "grounding_tokenizer",
)
UNET_REQUIRED = tuple(
    field
    for field in UNET_TRANSLATED
    if field not in ("channel_mult", "num_heads", "inpaint_mode", "grounding_tokenizer")
)
UNET_NEUTRAL = {
    "conv_resample": (True,),
    "dims": (2,),
    "fuser_type": ("gatedSA",),
    "grounding_downsampler": (None,),  # hed, canny, depth, normal, sem: wider first convolutions
    "transformer_depth": (1,),
    "use_scale_shift_norm": (False,),
}
UNET_IGNORED = {"dropout": NO_DROPOUT, "use_checkpoint": "trades time for memory in training"}

VAE_TRANSLATED = ("ch", "ch_mult", "num_res_blocks", "z_channels", "in_channels", "out_ch")
VAE_NEUTRAL = {
    "attn_resolutions": (),  # attention in the middle block alone
    "attn_type": ("vanilla",),
    "double_z": (True,),
    "give_pre_end": (False,),
    "resamp_with_conv": (True,),
    "tanh_out": (False,),
    "use_linear_attn": (False,),
}
VAE_IGNORED = {"dropout": NO_DROPOUT, "resolution": "the network is convolutional"}

POSITION_NET = "text_grounding_net.PositionNet"

Shapes = Mapping[str, tuple[int, ...]]  # by array name


def translate(config: Mapping[str, Any], text_encoder: TensorFile) -> ModelConfig:
    """All configs of an original GLIGEN checkpoint.

    `config` as `sources.open_original` gives it, `text_encoder` the arrays of that part. Raises
    UnsupportedConfig for a checkpoint that is not of the text-box kind, and for what is not built.
    """
    if missing := [p for p in ("model", "autoencoder", "diffusion") if p not in config]:
        raise UnsupportedConfig(f"the checkpoint's config has no {', '.join(missing)} part")
    unet = unet_config(_params(config["model"]))
    text, tokenizer = text_configs(text_encoder.shapes(), unet.num_heads[0])
    return check_together(
        ModelConfig(
            unet=unet,
            vae=vae_config(_params(config["autoencoder"])),
            text_encoder=text,
            schedule=noise_schedule(_params(config["diffusion"])),
            tokenizer=tokenizer,
        )
    )


def _require(what: str, params: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    if missing := [field for field in fields if field not in params]:
        raise UnsupportedConfig(f"{what} config lacks {', '.join(missing)}")


def _params(part: Mapping[str, Any]) -> dict[str, Any]:
    return dict(part.get("params") or {})


def unet_config(params: Mapping[str, Any]) -> UNetConfig:
    """`ldm.modules.diffusionmodules.openaimodel.UNetModel`."""
    _require("original U-Net", params, UNET_REQUIRED)
    check_fields("original U-Net", params, UNET_TRANSLATED, UNET_NEUTRAL, UNET_IGNORED)
    multipliers = params.get("channel_mult", (1, 2, 4, 8))
    # Down-sampling factors, not resolutions, at which there is attention.
    attention = [2**level in params["attention_resolutions"] for level in range(len(multipliers))]
    latent = params["out_channels"]
    if params["in_channels"] != latent:
        raise refused("original U-Net", "in_channels", params["in_channels"], f"{latent}")
    _check_position_net(params.get("grounding_tokenizer"), params["context_dim"])
    return UNetConfig(
        in_channels=2 * latent + 1 if params.get("inpaint_mode") else latent,
        out_channels=latent,
        block_channels=tuple(params["model_channels"] * m for m in multipliers),
        layers_per_block=(params["num_res_blocks"],) * len(multipliers),
        num_heads=(params.get("num_heads", 8),) * len(multipliers),
        down_attention=tuple(attention),
        up_attention=tuple(reversed(attention)),
        text_width=params["context_dim"],
        sample_size=params["image_size"],
        grounded=True,
    )


def _check_position_net(part: Mapping[str, Any] | None, text_width: int) -> None:
    target = (part or {}).get("target", "")
    if part is None or not target.endswith(POSITION_NET):
        raise UnsupportedConfig(
            f"original U-Net config: grounding_tokenizer is {target or None!r}, supported is "
            f"{POSITION_NET}; use a text-box checkpoint (gligen-generation-text-box, "
            "gligen-inpainting-text-box)"
        )
    supported = {"in_dim": text_width, "out_dim": text_width, "fourier_freqs": 8}
    for field, value in _params(part).items():
        if supported.get(field) != value:
            wanted = supported.get(field, f"one of {', '.join(supported)}")
            raise refused("original position net", field, value, wanted)


def vae_config(params: Mapping[str, Any]) -> VAEConfig:
    """`ldm.models.autoencoder.AutoencoderKL`."""
    _require("original VAE", params, ("ddconfig",))
    inner = params["ddconfig"]
    _require("original VAE", inner, VAE_TRANSLATED)
    check_fields("original VAE", inner, VAE_TRANSLATED, VAE_NEUTRAL, VAE_IGNORED)
    for field, value, wanted in (
        ("embed_dim", params.get("embed_dim", inner["z_channels"]), inner["z_channels"]),
        ("out_ch", inner["out_ch"], inner["in_channels"]),
    ):
        if value != wanted:
            raise refused("original VAE", field, value, wanted)
    return VAEConfig(
        image_channels=inner["in_channels"],
        latent_channels=inner["z_channels"],
        block_channels=tuple(inner["ch"] * m for m in inner["ch_mult"]),
        layers_per_block=inner["num_res_blocks"],
        scaling_factor=params.get("scale_factor", 0.18215),
    )


def noise_schedule(params: Mapping[str, Any]) -> NoiseSchedule:
    """`ldm.models.diffusion.ldm.LatentDiffusion`, with the time steps of the original PLMS.

    The original's "linear" is linear in the square root of beta: diffusers' scaled_linear.
    """
    neutral = {"beta_schedule": ("linear",), "given_betas": (None,), "parameterization": ("eps",)}
    translated = ("linear_start", "linear_end", "timesteps")
    check_fields("original diffusion", params, translated, neutral, {"cosine_s": "not cosine"})
    return NoiseSchedule(
        num_train_steps=params.get("timesteps", 1000),
        beta_start=params.get("linear_start", 1e-4),
        beta_end=params.get("linear_end", 2e-2),
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        skip_prk_steps=True,
    )


def text_configs(
    shapes: Shapes, unet_heads: int, prefix: str = ""
) -> tuple[CLIPTextConfig, TokenizerConfig]:
    """The text encoder from its arrays' shapes, and the special tokens of its vocabulary.

    `prefix` is what the file puts before all names of this part. No shape tells the number of
    heads: ViT-L/14 has 12, and other widths are taken to have the U-Net's number.
    """
    shapes = {key: shape for key, shape in shapes.items() if key.startswith(prefix)}
    (vocab_size, width), (max_length, _), (mlp_width, _) = (
        _shape_of(shapes, end)
        for end in (
            "token_embedding.weight",
            "position_embedding.weight",
            "layers.0.mlp.fc1.weight",
        )
    )
    layers = {int(n) for key in shapes for n in re.findall(r"\.layers\.(\d+)\.", key)}
    real = vocab_size == REAL_VOCABULARY
    bos, eos = (vocab_size - 2 if real else 0), vocab_size - 1
    text = CLIPTextConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=len(layers),
        num_heads=VIT_L_HEADS if width == VIT_L_WIDTH else unet_heads,
        mlp_width=mlp_width,
        max_length=max_length,
        activation="quick_gelu",
        eos_token_id=eos,
    )
    return text, TokenizerConfig(max_length, bos_token_id=bos, eos_token_id=eos, pad_token_id=eos)


def _shape_of(shapes: Shapes, end: str) -> tuple[int, ...]:
    for key, shape in shapes.items():
        if key.endswith(end):
            return shape
    raise UnsupportedConfig(f"the text encoder is no CLIP of Stable Diffusion 1.x: it has no {end}")


def from_single_file(arrays: TensorFile, num_heads: int = 8) -> ModelConfig:
    """All configs of a Stable Diffusion 1.x single file (`model.diffusion_model.*`), from shapes.

    Shapes do not tell `num_heads` (8 in every SD1.x) or the noise (that of SD1.x). `grounded` is
    True where the file has fusers. Raises UnsupportedConfig for a file that is not of SD1.x.
    """
    shapes = arrays.shapes()
    unet = _unet_from_shapes(shapes, "model.diffusion_model.", num_heads)
    text, tokenizer = text_configs(shapes, num_heads, "cond_stage_model.transformer.")
    return check_together(
        ModelConfig(
            unet=unet,
            vae=_vae_from_shapes(shapes, "first_stage_model."),
            text_encoder=text,
            schedule=noise_schedule({"linear_start": 0.00085, "linear_end": 0.012}),
            tokenizer=tokenizer,
        )
    )


def _unet_from_shapes(shapes: Shapes, prefix: str, num_heads: int) -> UNetConfig:
    shapes = _inside(shapes, prefix)
    channels, layers, attention = [0], [0], [False]
    for index in range(1, len(shapes)):
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in shapes:  # a down-sampler ends its level
            channels, layers, attention = [*channels, 0], [*layers, 0], [*attention, False]
        elif f"{block}.0.in_layers.2.weight" in shapes:
            channels[-1] = shapes[f"{block}.0.in_layers.2.weight"][0]
            layers[-1] += 1
            attention[-1] |= f"{block}.1.norm.weight" in shapes
        else:
            break
    cross = next((shapes[key] for key in shapes if key.endswith(".attn2.to_k.weight")), None)
    ends = "input_blocks.0.0.weight", "out.2.weight"
    if not all(channels) or cross is None or any(end not in shapes for end in ends):
        raise UnsupportedConfig(
            f"{prefix}* is no U-Net of Stable Diffusion 1.x; convert the model's diffusers folder"
        )
    return UNetConfig(
        in_channels=shapes[ends[0]][1],
        out_channels=shapes[ends[1]][0],
        block_channels=tuple(channels),
        layers_per_block=tuple(layers),
        num_heads=(num_heads,) * len(channels),
        down_attention=tuple(attention),
        up_attention=tuple(reversed(attention)),
        text_width=cross[1],
        grounded=any(".fuser." in key for key in shapes),
    )


def _vae_from_shapes(shapes: Shapes, prefix: str) -> VAEConfig:
    shapes = _inside(shapes, prefix)
    channels: list[int] = []
    while (end := f"encoder.down.{len(channels)}.block.0.conv2.weight") in shapes:
        channels.append(shapes[end][0])
    layers = [
        key for key in shapes if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv2\.weight", key)
    ]
    if not channels or "post_quant_conv.weight" not in shapes:
        raise UnsupportedConfig(f"{prefix}* is no AutoencoderKL of Stable Diffusion 1.x")
    return VAEConfig(
        image_channels=shapes["encoder.conv_in.weight"][1],
        latent_channels=shapes["post_quant_conv.weight"][0],
        block_channels=tuple(channels),
        layers_per_block=len(layers),
    )


def _inside(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {
        key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)
    }

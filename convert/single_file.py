"""Infers the configs of a single-file Stable Diffusion 1.x, which has none, from its array shapes.

Also that of an original GLIGEN checkpoint's text encoder, which its config does not describe.
"""

import dataclasses
import re
from collections.abc import Mapping

from reground_jax.config import (
    CLIPTextConfig,
    ModelConfig,
    NoiseSchedule,
    TextEncoderConfig,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)

from .configs import check_in_channels, check_together
from .ldm import LDM_PREFIXES
from .rules import UnsupportedConfig, real, refused
from .sources import TensorFile

REAL_VOCABULARY = 49408  # tokens of CLIP's own vocabulary; its last two begin and end a text
VIT_L_WIDTH, VIT_L_HEADS = 768, 12
VAE_GROUPS = 32
SCALE = real(1e-6, 1e6)  # of latents
SD1_NOISE = NoiseSchedule(  # and the timesteps of the original PLMS
    timestep_spacing="leading",
    steps_offset=1,
    set_alpha_to_one=False,
    clip_sample=False,
    skip_prk_steps=True,
)
# Arrays that mark an unsupported kind of model.
REFUSED = {
    "v_pred": "is a v-prediction model, which is not supported as a single file: convert its "
    "diffusers folder, whose scheduler config says so",
    "ztsnr": "was trained with zero terminal SNR (ztsnr), which is not supported as a single file: "
    "convert its diffusers folder, whose scheduler config says so",
    f"{LDM_PREFIXES['unet']}label_emb.": "has a U-Net with label_emb, like SDXL's, which is not "
    "supported: use a Stable Diffusion 1.x checkpoint",
}

Shapes = Mapping[str, tuple[int, ...]]  # by array name


def text_config(shapes: Shapes, unet_heads: int, prefix: str = "") -> TextEncoderConfig:
    """The text encoder's config and special tokens, from its array shapes.

    prefix: of all names of this part in the file. No shape tells the number of heads: ViT-L/14 has
    12, and other widths are assumed to have as many as the U-Net.
    """
    shapes = {key: shape for key, shape in shapes.items() if key.startswith(prefix)}
    (vocab_size, width), (max_length, _), (mlp_width, _) = (
        _sizes(shapes, _text_name(shapes, end), 2)
        for end in (
            "token_embedding.weight",
            "position_embedding.weight",
            "layers.0.mlp.fc1.weight",
        )
    )
    layers = {int(n) for key in shapes for n in re.findall(r"\.layers\.(\d+)\.", key)}
    heads = VIT_L_HEADS if width == VIT_L_WIDTH else unet_heads
    if width % heads:
        raise UnsupportedConfig(
            f"the text encoder's width {width} is not divisible by {heads} heads: it is not a CLIP "
            "of Stable Diffusion 1.x"
        )
    is_clips = vocab_size == REAL_VOCABULARY
    bos, eos = (vocab_size - 2 if is_clips else 0), vocab_size - 1
    text = CLIPTextConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=len(layers),
        num_heads=heads,
        mlp_width=mlp_width,
        max_length=max_length,
        activation="quick_gelu",
        eos_token_id=eos,
    )
    tokens = TokenizerConfig(max_length, bos_token_id=bos, eos_token_id=eos, pad_token_id=eos)
    return TextEncoderConfig(text, tokens)


def _text_name(shapes: Shapes, end: str) -> str:
    for key in shapes:
        if key.endswith(end):
            return key
    raise UnsupportedConfig(f"the text encoder is not Stable Diffusion 1.x's CLIP: it has no {end}")


def _sizes(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    """The shape of an array that must have this many axes, none of them empty."""
    shape = shapes[name]
    if len(shape) != axes or 0 in shape:
        raise UnsupportedConfig(
            f"{name} has shape {shape}, but in Stable Diffusion 1.x it has {axes} axes, none of "
            "them empty"
        )
    return shape


def from_single_file(arrays: TensorFile, num_heads: int = 8) -> ModelConfig:
    """All configs of a Stable Diffusion 1.x single file (`model.diffusion_model.*`), from shapes.

    Shapes do not tell `num_heads` (8 in every SD1.x) or the noise schedule (that of SD1.x). The
    grounding is text if the file has fusers; the latent scale is read if the file has it. Raises
    UnsupportedConfig for a file that is not SD1.x.
    """
    shapes = arrays.shapes()
    for start, what in REFUSED.items():
        if any(name.startswith(start) for name in shapes):
            raise UnsupportedConfig(f"{arrays.name} {what}")
    unet = _unet_from_shapes(shapes, LDM_PREFIXES["unet"], num_heads)
    text = text_config(shapes, num_heads, f"{LDM_PREFIXES['text_encoder']}transformer.")
    vae = _vae_from_shapes(shapes, LDM_PREFIXES["vae"])
    if "scale_factor" in shapes:
        vae = dataclasses.replace(vae, scaling_factor=_scale(arrays))
    return check_together(
        ModelConfig(unet=unet, vae=vae, text_encoders=(text,), schedule=SD1_NOISE)
    )


def _scale(arrays: TensorFile) -> float:
    """The latent scale, which training with `scale_by_std` stores in the file."""
    if arrays.shape("scale_factor") not in ((), (1,)):
        raise refused(arrays.name, "scale_factor", arrays.shape("scale_factor"), "one number")
    value = arrays.read("scale_factor").reshape(()).astype("float64").item()
    if not SCALE.accepts(value):
        raise refused(arrays.name, "scale_factor", value, SCALE.text)
    return round(value, 6)  # a decimal number, stored as float32


def _unet_from_shapes(shapes: Shapes, prefix: str, num_heads: int) -> UNetConfig:
    shapes = _inside(shapes, prefix)
    channels, layers, attention = [0], [0], [False]
    for index in range(1, len(shapes)):
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in shapes:  # a downsampler ends its level
            channels, layers, attention = [*channels, 0], [*layers, 0], [*attention, False]
        elif f"{block}.0.in_layers.2.weight" in shapes:
            channels[-1] = _sizes(shapes, f"{block}.0.in_layers.2.weight", 4)[0]
            layers[-1] += 1
            attention[-1] |= f"{block}.1.norm.weight" in shapes
        else:
            break
    cross = next((key for key in shapes if key.endswith(".attn2.to_k.weight")), None)
    ends = "input_blocks.0.0.weight", "out.2.weight"
    if not all(channels) or cross is None or any(end not in shapes for end in ends):
        raise UnsupportedConfig(
            f"{prefix}* is not a Stable Diffusion 1.x U-Net; convert the model's diffusers folder"
        )
    in_channels, out_channels = _sizes(shapes, ends[0], 4)[1], _sizes(shapes, ends[1], 4)[0]
    check_in_channels(f"{prefix}*", in_channels, out_channels)
    return UNetConfig(
        in_channels=in_channels,
        out_channels=out_channels,
        block_channels=tuple(channels),
        layers_per_block=tuple(layers),
        num_heads=(num_heads,) * len(channels),
        down_attention=tuple(attention),
        up_attention=tuple(reversed(attention)),
        text_width=_sizes(shapes, cross, 2)[1],
        grounding="text" if any(".fuser." in key for key in shapes) else None,
        inpainting=in_channels != out_channels,
    )


def _vae_from_shapes(shapes: Shapes, prefix: str) -> VAEConfig:
    shapes = _inside(shapes, prefix)
    channels: list[int] = []
    while (end := f"encoder.down.{len(channels)}.block.0.conv2.weight") in shapes:
        channels.append(_sizes(shapes, end, 4)[0])
    layers = [
        key for key in shapes if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv2\.weight", key)
    ]
    ends = "encoder.conv_in.weight", "post_quant_conv.weight"
    groups_fit = not any(width % VAE_GROUPS for width in channels)
    if not channels or not groups_fit or any(end not in shapes for end in ends):
        raise UnsupportedConfig(f"{prefix}* is not a Stable Diffusion 1.x AutoencoderKL")
    return VAEConfig(
        image_channels=_sizes(shapes, ends[0], 4)[1],
        latent_channels=_sizes(shapes, ends[1], 4)[0],
        block_channels=tuple(channels),
        layers_per_block=len(layers),
    )


def _inside(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {
        key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)
    }

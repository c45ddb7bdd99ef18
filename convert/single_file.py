"""Infers the configs of a single file of Stable Diffusion, which has none, from its array shapes.

Also that of an original GLIGEN checkpoint's text encoder, which its config does not describe.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

from reground_jax.config import (
    CLIPTextConfig,
    ModelConfig,
    NoiseSchedule,
    TextEncoderConfig,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)

from . import openclip
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
SD2_V_SIZE = 96  # side of the latents of the 768-pixel models
# Names of empty arrays that mark a U-Net that predicts v, and one trained from pure noise on.
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
# What to do without a network.
ABSENT = {
    "text_encoder": "use a checkpoint with its text encoder, or a diffusers folder",
    "vae": "add one with --vae, such as stabilityai/sd-vae-ft-mse",
}
# Arrays that mark an unsupported kind of model.
REFUSED = {
    f"{LDM_PREFIXES['unet']}label_emb.": "has a U-Net with label_emb, like SDXL's, which is not "
    "supported: use a Stable Diffusion 1.x or 2.x checkpoint",
}

Prediction = Literal["epsilon", "v_prediction"]
Shapes = Mapping[str, tuple[int, ...]]  # by array name


def text_config(shapes: Shapes, unet_heads: int | None, prefix: str = "") -> TextEncoderConfig:
    """The text encoder's config and special tokens, from its array shapes.

    prefix: of all names of this part in the file. No shape tells the number of heads: ViT-L/14 has
    12, and other widths are assumed to have as many as the U-Net. unet_heads: None for OpenCLIP's
    transformer by CLIP's names (see `openclip.as_clip`), whose heads are 64 wide.
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
    if unet_heads is None:
        heads = max(width // openclip.HEAD_WIDTH, 1)
    else:
        heads = VIT_L_HEADS if width == VIT_L_WIDTH else unet_heads
    if width % heads:
        raise UnsupportedConfig(
            f"the text encoder's width {width} is not divisible by {heads} heads: it is not a CLIP "
            "of Stable Diffusion"
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
        activation="gelu" if unet_heads is None else "quick_gelu",
        eos_token_id=eos,
    )
    pad = openclip.PAD if unet_heads is None else eos
    tokens = TokenizerConfig(max_length, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)
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


def from_single_file(
    arrays: TensorFile,
    num_heads: int | None = 8,
    *,
    prediction: Prediction | None = None,
    vae: VAEConfig | None = None,
) -> ModelConfig:
    """All configs of a Stable Diffusion single file (`model.diffusion_model.*`), from its shapes.

    Shapes do not tell `num_heads` (8 in every SD1.x; None for SD2.x, whose heads are 64 wide), the
    noise schedule (that of SD1.x), or what the U-Net predicts: `prediction`, by default what an
    array named v_pred says, or else epsilon in SD1.x. The grounding is text if the file has fusers;
    the latent scale is read if the file has it. vae: of another autoencoder than the file's. Raises
    UnsupportedConfig for any other kind of file.
    """
    shapes = arrays.shapes()
    for start, what in REFUSED.items():
        if any(name.startswith(start) for name in shapes):
            raise UnsupportedConfig(f"{arrays.name} {what}")
    unet = _unet_from_shapes(shapes, LDM_PREFIXES["unet"], num_heads)
    for network, way_out in ABSENT.items():
        prefix = LDM_PREFIXES[network]
        given = network == "vae" and vae is not None
        if not given and not any(name.startswith(prefix) for name in shapes):
            raise UnsupportedConfig(f"{arrays.name} has no {network} ({prefix}*): {way_out}")
    predicts = _prediction(arrays, prediction, known=num_heads is not None)
    if num_heads is None and predicts == "v_prediction":
        unet = dataclasses.replace(unet, sample_size=SD2_V_SIZE)
    if vae is None:
        vae = with_scale(vae_from_shapes(shapes, LDM_PREFIXES["vae"]), arrays)
    return check_together(
        ModelConfig(
            unet=unet,
            vae=vae,
            text_encoders=(text_config(shapes, num_heads, LDM_PREFIXES["text_encoder"]),),
            schedule=_schedule(arrays, predicts),
        )
    )


def _schedule(arrays: TensorFile, predicts: Prediction) -> NoiseSchedule:
    """That of SD1.x; begun at pure noise if the file is marked as trained so."""
    schedule = dataclasses.replace(SD1_NOISE, prediction_type=predicts)
    if ZERO_SNR not in arrays:
        return schedule
    if predicts == "epsilon":
        raise UnsupportedConfig(
            f"{arrays.name} was trained with zero terminal SNR (it has an array named {ZERO_SNR}), "
            "so its U-Net cannot predict epsilon: pass --prediction v_prediction"
        )
    return dataclasses.replace(schedule, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def _prediction(arrays: TensorFile, given: Prediction | None, known: bool) -> Prediction:
    """What the U-Net predicts. known: whether it is epsilon where neither file nor user say."""
    if V_PREDICTION not in arrays:
        if given is None and not known:
            raise UnsupportedConfig(
                f"{arrays.name} is a Stable Diffusion 2.x file, which does not say what its U-Net "
                "predicts: pass --prediction epsilon for those of 512 pixels (2-base, 2-1-base), "
                "or --prediction v_prediction for those of 768"
            )
        return given or "epsilon"
    if given == "epsilon":
        raise UnsupportedConfig(
            f"{arrays.name} says that its U-Net predicts v (it has an array named {V_PREDICTION}): "
            "leave out --prediction"
        )
    return "v_prediction"


def with_scale(vae: VAEConfig, arrays: TensorFile) -> VAEConfig:
    """The same with the latent scale in the file, where training with `scale_by_std` stores it."""
    if "scale_factor" not in arrays:
        return vae
    if arrays.shape("scale_factor") not in ((), (1,)):
        raise refused(arrays.name, "scale_factor", arrays.shape("scale_factor"), "one number")
    value = arrays.read("scale_factor").reshape(()).astype("float64").item()
    if not SCALE.accepts(value):
        raise refused(arrays.name, "scale_factor", value, SCALE.text)
    # A decimal number, stored as float32.
    return dataclasses.replace(vae, scaling_factor=round(value, 6))


def _unet_from_shapes(shapes: Shapes, prefix: str, num_heads: int | None) -> UNetConfig:
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
            f"{prefix}* is no U-Net of Stable Diffusion 1.x or 2.x; convert the model's diffusers "
            "folder"
        )
    in_channels, out_channels = _sizes(shapes, ends[0], 4)[1], _sizes(shapes, ends[1], 4)[0]
    check_in_channels(f"{prefix}*", in_channels, out_channels)
    return UNetConfig(
        in_channels=in_channels,
        out_channels=out_channels,
        block_channels=tuple(channels),
        layers_per_block=tuple(layers),
        num_heads=tuple(num_heads or max(c // openclip.HEAD_WIDTH, 1) for c in channels),
        down_attention=tuple(attention),
        up_attention=tuple(reversed(attention)),
        text_width=_sizes(shapes, cross, 2)[1],
        grounding="text" if any(".fuser." in key for key in shapes) else None,
        inpainting=in_channels != out_channels,
    )


def vae_from_shapes(shapes: Shapes, prefix: str) -> VAEConfig:
    """The autoencoder's config. prefix: of its names. Raises UnsupportedConfig."""
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
        raise UnsupportedConfig(f"{prefix}* is not a Stable Diffusion AutoencoderKL")
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

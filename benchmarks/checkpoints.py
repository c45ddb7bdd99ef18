"""A random GLIGEN checkpoint in diffusers' format, so that both sides read the same files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from reground_jax.bench.presets import MERGES, preset_config, tokenizer_json
from reground_jax.config import ModelConfig
from reground_jax.convert.keys import Leaf, torch_names
from reground_jax.model import leaf_shapes

FILES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
SAFETENSORS = {"float16": "F16", "float32": "F32"}
SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip


def write_checkpoint(folder: Path, preset: str, *, dtype: str = "float16", seed: int = 0) -> None:
    """Writes a diffusers folder of the preset's size; no tensor is zero, no norm an identity."""
    config = preset_config(preset)
    random = np.random.default_rng(seed)
    leaves: dict[str, list[Leaf]] = {name: [] for name in FILES}
    for path, shape in leaf_shapes(config).items():
        leaves[path.split("/")[0]].append(Leaf(path, torch_names(path), shape))
    for name, fields in diffusers_configs(config).items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(fields))
        shapes = {source: _stored_shape(leaf) for leaf in leaves[name] for source in leaf.sources}
        file = folder / name / f"{FILES[name]}.safetensors"
        _write_safetensors(file, shapes, dtype, random)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    write_tokenizer(folder / "tokenizer", config)


def _stored_shape(leaf: Leaf) -> tuple[int, ...]:
    """diffusers' shape; SD1.x keeps the projections around a transformer as 1x1 convolutions."""
    shapes = sorted(leaf.source_shapes(), key=len)
    convolution = "/proj_in/" in leaf.path or "/proj_out/" in leaf.path
    shortcut = leaf.path.endswith("/conv_shortcut/kernel")
    quant = "quant_conv" in leaf.path
    return shapes[-1 if convolution or shortcut or quant else 0]


def _write_safetensors(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, random: np.random.Generator
) -> None:
    """Writes header length, header and data, with one tensor in memory at a time."""
    header, offset, size = {}, 0, np.dtype(dtype).itemsize
    for name, shape in shapes.items():
        ends = [offset, offset := offset + size * int(np.prod(shape))]
        header[name] = {"dtype": SAFETENSORS[dtype], "shape": list(shape), "data_offsets": ends}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(_random(name, shape, random).astype(dtype).tobytes())


def _random(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    values = np.asarray(random.standard_normal(shape, np.float32))
    if len(shape) > 1 and "embedding" not in name:
        return values / np.sqrt(np.prod(shape[1:]))  # preserves the variance of activations
    if shape == ():
        return 0.5 + 0.1 * values  # a gate
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * values
    return 0.1 * values if name.endswith("bias") else values


def write_tokenizer(folder: Path, config: ModelConfig) -> None:
    folder.mkdir()
    vocabulary = Tokenizer.from_str(tokenizer_json()).get_vocab()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(MERGES)
    special = {
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
    }  # fmt: skip
    length = {"model_max_length": config.text_encoder.tokenizer.max_length}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer"} | length | special)
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def diffusers_configs(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """The config.json of each network, for text-box models like the presets."""
    unet, vae = config.unet, config.vae
    text, tokens = config.text_encoder.network, config.text_encoder.tokenizer
    levels = len(vae.block_channels)
    return {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": unet.sample_size,
            "in_channels": unet.in_channels,
            "out_channels": unet.out_channels,
            "block_out_channels": unet.block_channels,
            "layers_per_block": unet.layers_per_block[0],
            "attention_head_dim": unet.num_heads[0],  # SD1.x's name for the number of heads
            "cross_attention_dim": unet.text_width,
            "norm_num_groups": unet.norm_groups,
            "attention_type": "gated",
            "down_block_types": [
                "CrossAttnDownBlock2D" if has else "DownBlock2D" for has in unet.down_attention
            ],
            "up_block_types": [
                "CrossAttnUpBlock2D" if has else "UpBlock2D" for has in unet.up_attention
            ],
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "latent_channels": vae.latent_channels,
            "block_out_channels": vae.block_channels,
            "layers_per_block": vae.layers_per_block,
            "norm_num_groups": vae.norm_groups,
            "scaling_factor": vae.scaling_factor,
            "sample_size": config.side,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        },
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "max_position_embeddings": text.max_length,
            "hidden_act": text.activation,
            "bos_token_id": tokens.bos_token_id,
            "eos_token_id": tokens.eos_token_id,
            "pad_token_id": tokens.pad_token_id,
        },
    }

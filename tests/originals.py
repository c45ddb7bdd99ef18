"""The tiny checkpoints of the original code, and the other forms that such weights come in."""

import json
from pathlib import Path

import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModel

from reground_jax.convert.sources import TensorFile, open_original
from tests.reference import DATA, SD14_SCHEDULER, byte_symbols, small_vocabulary

TEXT_BOX = DATA / "original_text_box_tiny.bin"
INPAINT = DATA / "original_inpaint_tiny.bin"
# Where a single file of Stable Diffusion has the parts of the original GLIGEN pickle.
PREFIXES = {
    "model": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}


def write_tiny_tokenizer(folder: Path, **settings) -> Path:
    """The fixtures' 256 tokens: begin 0, end 255; ASCII, the same at a word's end, 66 merges."""
    symbols, merges = byte_symbols()[:94], list(filter(str.isascii, small_vocabulary()[1]))[:66]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens = ["<|startoftext|>", *tokens, "<|endoftext|>"]
    assert len(tokens) == 256
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def grounding(name: str) -> bool:
    return ".fuser." in name or name.startswith("position_net.")


def tensors(file: TensorFile) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(file.read(name)) for name in file.keys()}


def write_single_file(path: Path, original: Path = TEXT_BOX) -> Path:
    """The plain Stable Diffusion inside an original checkpoint, as people share it."""
    parts, _ = open_original(original)
    weights = {
        prefix + name: tensor
        for part, prefix in PREFIXES.items()
        for name, tensor in tensors(parts[part]).items()
        if not grounding(name)
    }
    weights |= tensors(parts["diffusion"])  # noise tables, which single files carry too
    safetensors.torch.save_file(weights, path)
    return path


def write_adapter(path: Path, original: Path = TEXT_BOX) -> Path:
    """Its fusers and position net alone, by the original names."""
    weights = tensors(open_original(original)[0]["model"])
    safetensors.torch.save_file({k: v for k, v in weights.items() if grounding(k)}, path)
    return path


def write_diffusers_base(folder: Path, original: Path = TEXT_BOX) -> Path:
    """The same plain Stable Diffusion as a diffusers folder, by diffusers' own converters."""
    file = safetensors.torch.load_file(write_single_file(folder.with_suffix(".tmp"), original))
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=48,
    )
    unet.load_state_dict(single_file_utils.convert_ldm_unet_checkpoint(file, unet.config))
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    vae.load_state_dict(single_file_utils.convert_ldm_vae_checkpoint(file, vae.config))
    special = {"bos_token_id": 0, "eos_token_id": 255, "pad_token_id": 255}
    config = CLIPTextConfig(
        vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=8, **special,
    )  # fmt: skip
    text = CLIPTextModel(config)
    prefix = "cond_stage_model.transformer.text_model."
    weights = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
    del weights["embeddings.position_ids"]
    text.load_state_dict(weights)
    for part, model in {"unet": unet, "vae": vae, "text_encoder": text}.items():
        model.save_pretrained(folder / part)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SD14_SCHEDULER))
    return folder

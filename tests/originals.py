"""The tiny checkpoints of the original code, and the other forms that such weights come in."""

import json
from pathlib import Path

import safetensors.torch
import torch

from reground_jax.convert.sources import TensorFile, open_original
from tests.reference import DATA, byte_symbols, small_vocabulary

TEXT_BOX = DATA / "original" / "original_text_box_tiny.bin"
INPAINT = DATA / "original" / "original_inpaint_tiny.bin"
# Where a single file of Stable Diffusion has the parts of the original GLIGEN pickle.
PREFIXES = {
    "model": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}


def write_tiny_tokenizer(folder: Path, **settings) -> Path:
    """The fixtures' 256 tokens: begin 0, end 255; ASCII, the same at a word's end, 66 merges."""
    symbols, merges = byte_symbols()[:94], small_vocabulary()[1][:66]
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

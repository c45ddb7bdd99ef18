"""Tiny full CLIPs of transformers with random weights, and their folders."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from tests.reference import TEXT, VISIONS, randomise, write_tokenizer

# Activation, where texts are read, and how the parts' widths relate, as in published ones.
CLIPS = {
    "b32": ({}, VISIONS["b32"], 20),
    "l14": (dict(eos_token_id=2), VISIONS["l14"], 24),
    "h14": (
        dict(hidden_act="gelu", hidden_size=32, pad_token_id=0),
        VISIONS["l14"] | dict(hidden_act="gelu", hidden_size=48, num_attention_heads=3),
        28,
    ),
}


def clip(name: str, *, projection: int | None = None, activation: str | None = None) -> CLIPModel:
    text, vision, width = CLIPS[name]
    both = {} if activation is None else {"hidden_act": activation}
    config = CLIPConfig(
        text_config=TEXT | text | both,
        vision_config=vision | both,
        projection_dim=projection or width,
    )
    model = CLIPModel(config)
    randomise(model, seed=5)
    with torch.no_grad():
        model.logit_scale.fill_(2.5)
    return model


def write_clip(folder: Path, name: str, **options) -> CLIPModel:
    """A folder as on the Hub, with its tokenizer."""
    write_tokenizer(folder, pad="!" if CLIPS[name][0].get("pad_token_id") == 0 else "<|endoftext|>")
    model = clip(name, **options)
    model.save_pretrained(folder)
    return model

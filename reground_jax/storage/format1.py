"""Reads the config and array names of model directories in the old format "reground-jax/1".

It has one kind of grounding, as a flag; inpainting is implied by the number of channels; there is
one text encoder, with its tokenizer next to it; and each transformer has one unnumbered block.
Checksums in these directories cover what is stored: the old names and the old config's fields.
"""

import re
from typing import Any

from reground_jax.basics.fields import as_object
from reground_jax.basics.wording import shown
from reground_jax.config import ModelConfig, check_parts

FORMAT = "reground-jax/1"
PARTS = ("unet", "vae", "text_encoder", "schedule", "tokenizer")
NEW = ("grounding", "inpainting", "transformer_layers")  # U-Net fields added after this format


def config_json(value: dict[str, Any]) -> dict[str, Any]:
    """The parts of an old config.json, as input for `ModelConfig.from_json`. Raises ValueError."""
    check_parts(value, PARTS)
    return {
        "unet": _unet(as_object("UNetConfig", value["unet"])),
        "vae": value["vae"],
        "text_encoders": [{"network": value["text_encoder"], "tokenizer": value["tokenizer"]}],
        "schedule": value["schedule"],
    }


def _unet(fields: dict[str, Any]) -> dict[str, Any]:
    if unknown := [name for name in NEW if name in fields]:
        raise ValueError(f"UNetConfig has no field {', '.join(unknown)} in format {FORMAT!r}")
    fields = dict(fields)
    grounded = fields.pop("grounded", True)
    if not isinstance(grounded, bool):
        raise ValueError(f"UNetConfig.grounded is {shown(grounded)}: it must be true or false")
    channels = [fields.get(name, 4) for name in ("in_channels", "out_channels")]
    numbers = all(type(number) is int for number in channels)  # others are refused later
    inpainting = numbers and channels[0] == 2 * channels[1] + 1
    return fields | {"grounding": "text" if grounded else None, "inpainting": inpainting}


def changes(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """`ModelConfig.changes` in the form that old directories' checksums cover."""
    found = config.changes()
    unet = {name: value for name, value in found["unet"].items() if name not in NEW}
    if config.unet.grounding is None:
        unet["grounded"] = False
    return found | {"unet": unet}


def current_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """The config in a training folder's record, in the form of `ModelConfig.to_json`."""
    return config_json(parts) if "text_encoder" in parts else parts


def stored_name(name: str) -> str:
    """An array's name in an old directory."""
    return re.sub(r"(\bunet/\S*attentions/\d+)/blocks/0/", r"\1/block/", name)


def current_name(name: str) -> str:
    """Inverse of `stored_name`."""
    return re.sub(r"(\bunet/\S*attentions/\d+)/block/", r"\1/blocks/0/", name)

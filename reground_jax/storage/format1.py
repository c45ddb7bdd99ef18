"""Model directories of format "reground-jax/1", which are read on: their config and array names.

They knew one kind of grounding, as a flag; inpainting by the number of channels; one text encoder,
whose tokenizer stood beside it; and one block in each transformer, which had no number. Checksums
in these directories are of what is stored: of the old names, and of the old config's fields.
"""

import re
from typing import Any

from reground_jax.basics.fields import as_object
from reground_jax.basics.wording import shown
from reground_jax.config import ModelConfig, check_parts

FORMAT = "reground-jax/1"
PARTS = ("unet", "vae", "text_encoder", "schedule", "tokenizer")
NEW = ("grounding", "inpainting", "transformer_layers")  # fields of a U-Net that came after it


def config_json(value: dict[str, Any]) -> dict[str, Any]:
    """What `ModelConfig.from_json` takes, of the parts of an old config.json. Raises ValueError."""
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
    numbers = all(type(number) is int for number in channels)  # others are refused as they are
    inpainting = numbers and channels[0] == 2 * channels[1] + 1
    return fields | {"grounding": "text" if grounded else None, "inpainting": inpainting}


def changes(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """`ModelConfig.changes` as old directories have it in their checksum."""
    found = config.changes()
    unet = {name: value for name, value in found["unet"].items() if name not in NEW}
    if config.unet.grounding is None:
        unet["grounded"] = False
    return found | {"unet": unet}


def current_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """The config that another record has, a training folder's, as `ModelConfig.to_json` says it."""
    return config_json(parts) if "text_encoder" in parts else parts


def stored_name(name: str) -> str:
    """What an old directory calls an array."""
    return re.sub(r"(\bunet/\S*attentions/\d+)/blocks/0/", r"\1/block/", name)


def current_name(name: str) -> str:
    """Inverse of `stored_name`."""
    return re.sub(r"(\bunet/\S*attentions/\d+)/block/", r"\1/blocks/0/", name)

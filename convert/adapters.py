"""Adds the fusers and the position net of an adapter file to a base without them."""

import dataclasses
from pathlib import Path

from reground_jax.config import UNetConfig

from .gathered import Gathered
from .ldm import rename
from .sources import Located, Source, adapter_prefix, open_tensors


def add_adapter(base: Gathered, adapter: Source | None, source: str | Path) -> Gathered:
    """`base` with the fusers and the position net of an adapter file, or its own.

    source: of the base, for messages. Raises ValueError if both or neither of them have fusers.
    """
    if adapter is None:
        if base.config.unet.grounding is not None:
            return base
        raise ValueError(
            f"{source} is a plain Stable Diffusion checkpoint: it has no fusers and no position "
            "net; use a GLIGEN checkpoint, or add GLIGEN's weights with --adapter"
        )
    if adapter.kind == "lora":
        raise ValueError(f"--adapter {adapter.path} is a LoRA: pass it with --lora")
    if adapter.kind != "adapter":
        raise ValueError(
            f"--adapter {adapter.path} is a full checkpoint ({adapter.kind}), not an adapter: "
            "convert it on its own"
        )
    if base.config.unet.grounding is not None:
        raise ValueError("the base already has fusers: use an adapter with plain Stable Diffusion")
    if base.config.unet.inpainting:
        raise ValueError(
            f"the base is an inpainting model ({base.config.unet.in_channels} input channels), "
            "whose extra channels differ from GLIGEN's in order and meaning: use the adapter with "
            "plain Stable Diffusion, or convert a GLIGEN inpainting checkpoint"
        )
    unet: UNetConfig = dataclasses.replace(base.config.unet, grounding="text")
    config = dataclasses.replace(base.config, unet=unet)
    file = open_tensors(adapter.path)
    prefix = adapter_prefix(file.keys()) or ""
    extra = {
        rename("unet", name.removeprefix(prefix), config): Located(file, name)
        for name in file.keys()
    }
    tensors = base.tensors | {"unet": base.tensors["unet"] | extra}
    return dataclasses.replace(base, config=config, tensors=tensors)

"""What a kind of checkpoint needs from other files: an image encoder, or a first convolution."""

import dataclasses
import warnings
from pathlib import Path

from reground_jax.config import ModelConfig

from .first_conv import WAY_OUT, find_first_conv
from .gathered import Gathered
from .image_towers import gather_image_tower
from .sources import Located, Source, Tensors

Whole = tuple[ModelConfig, Tensors]


def add_all(
    gathered: Gathered,
    source: Source,
    *,
    clip: str | Path | None = None,
    projection: str | Path | None = None,
    first_conv: str | Path | None = None,
    variant: str | None = None,
) -> Gathered:
    """The same model with all that its kind needs; the options as in the functions below."""
    tower = {"clip": clip, "projection": projection, "variant": variant}
    whole = add_image_tower(gathered.config, gathered.tensors, source, **tower)
    config, tensors = add_first_conv(*whole, source, first_conv)
    return dataclasses.replace(gathered, config=config, tensors=tensors)


def add_image_tower(
    config: ModelConfig,
    tensors: Tensors,
    source: Source,
    *,
    clip: str | Path | None = None,
    projection: str | Path | None = None,
    variant: str | None = None,
) -> Whole:
    """The same model with CLIP's image encoder and its projection, if it reads reference images.

    clip, projection: see `gather_image_tower`. Raises ValueError if they are given for another
    kind of model.
    """
    if config.unet.grounding != "text_image":
        for option, value in (("clip", clip), ("projection", projection)):
            if value is not None:
                raise ValueError(
                    f"{source.path} is of kind {config.unet.grounding}, which reads no reference "
                    f"images: leave out --{option}"
                )
        return config, tensors
    folder = source.path if source.kind == "diffusers" else None
    tower = gather_image_tower(folder, clip=clip, projection=projection, variant=variant)
    return dataclasses.replace(config, image_encoder=tower.config), tensors | tower.tensors


def add_first_conv(
    config: ModelConfig, tensors: Tensors, source: Source, first_conv: str | Path | None
) -> Whole:
    """The same model with the first convolution of its steps without fusers, if it reads a map.

    Warns if a model that reads a map gets none. Raises ValueError if it is given for another kind.
    """
    unet = config.unet
    if unet.map is None:
        if first_conv is not None:
            raise ValueError(
                f"{source.path} is of kind {unet.grounding}, which has only one first "
                "convolution: leave out --first-conv"
            )
        return config, tensors
    if first_conv is None:
        warnings.warn(
            f"{source.path} does not hold Stable Diffusion's first convolution, so the model will "
            f"only generate with gamma 1: {WAY_OUT}",
            stacklevel=3,
        )
        return config, tensors
    file, names = find_first_conv(first_conv)
    extra = {f"first_conv.{leaf}": Located(file, name) for leaf, name in names.items()}
    config = dataclasses.replace(config, unet=dataclasses.replace(unet, first_conv=True))
    return config, tensors | {"unet": tensors["unet"] | extra}

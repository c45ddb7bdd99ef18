"""The kinds of grounding, and the registry of them.

A kind is a property of a checkpoint (`UNetConfig.grounding`). Its file defines

    Grounding     the input, a NamedTuple of arrays. `null()` returns one with the same number of
                  null tokens
    PositionNet   `PositionNet(config, rngs=...)`; called with a Grounding and a dtype, it returns
                  the grounding tokens [B, G, E]. `null_tokens` are those of the unconditional
                  branch of guidance
    Downsampler   if it appends channels to the latents: the same channels for all branches
    macs          multiply-accumulates of the position net

`KINDS` lists it under its name in configs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from reground_jax.config import UNetConfig
from reground_jax.kinds import MAP_KINDS, GroundingKind
from reground_jax.networks.grounding import keypoint, maps, text, text_image

# The input of any kind.
Grounding = text.Grounding | text_image.Grounding | keypoint.Grounding | maps.Grounding


class Kind(NamedTuple):
    position_net: Callable[..., Any]
    macs: Callable[[UNetConfig, int], int]  # of the number of tokens
    downsampler: Callable[..., Any] | None = None


KINDS: dict[GroundingKind, Kind] = {
    "text": Kind(text.PositionNet, text.macs),
    "text_image": Kind(text_image.PositionNet, text_image.macs),
    "keypoint": Kind(keypoint.PositionNet, keypoint.macs),
    **{name: Kind(maps.PositionNet, maps.macs, maps.Downsampler) for name in MAP_KINDS},
}

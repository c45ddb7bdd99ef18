"""The kinds of grounding, one file each, and the registry of them.

A kind is a property of a checkpoint (`UNetConfig.grounding`). Its file defines

    Grounding     the input, a NamedTuple of arrays. `null()` returns one with the same number of
                  null tokens; what it adds to the U-Net's input stays the same
    PositionNet   `PositionNet(text_width, rngs=...)`; called with a Grounding and a dtype, it
                  returns the grounding tokens [B, G, E]
    macs          multiply-accumulates of the position net

`KINDS` lists it under its name in configs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from reground_jax.config import GroundingKind
from reground_jax.networks.grounding import text

Grounding = text.Grounding  # the input of any kind


class Kind(NamedTuple):
    position_net: Callable[..., Any]
    macs: Callable[[int, int], int]  # of text width and number of tokens
    input_channels: int = 0  # what it adds to the U-Net's input, such as a map


KINDS: dict[GroundingKind, Kind] = {"text": Kind(text.PositionNet, text.macs)}

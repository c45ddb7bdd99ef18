"""What a checkpoint is grounded by: a file per kind, and the one list of them.

A kind is a property of a checkpoint (`UNetConfig.grounding`). Its file has

    Grounding     the request, a NamedTuple of arrays. `null()` gives one of as many null tokens,
                  with whatever it adds to the U-Net's input as it is
    PositionNet   `PositionNet(text_width, rngs=...)`; called with a request and a dtype, it gives
                  the grounding tokens [B, G, E]
    macs          what the position net costs

and an entry in `KINDS`, by the name that configs have for it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from reground_jax.config import GroundingKind
from reground_jax.networks.grounding import text

Grounding = text.Grounding  # the request of any kind


class Kind(NamedTuple):
    position_net: Callable[..., Any]
    macs: Callable[[int, int], int]  # of text width and number of tokens
    input_channels: int = 0  # that the request adds to the U-Net's input, as a map does


KINDS: dict[GroundingKind, Kind] = {"text": Kind(text.PositionNet, text.macs)}

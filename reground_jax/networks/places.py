"""Static names for the attention layers of a U-Net.

A place says which layer an array belongs to, like a key in a dict; as a string, it is the layer's
scope path in a profile, such as "down_0/transformer_1/block_0/cross_attention".

The map at a place is the softmax of the layer's logits: float32, over S keys for each of T cells in
row-major order, in N heads. Keys are the tokens of the text, the cells themselves or, in a fuser,
the cells and then the grounding tokens.
"""

from dataclasses import dataclass
from typing import Literal

from reground_jax.config import UNetConfig

Attention = Literal["self", "fuser", "text"]
SCOPES: dict[Attention, str] = {  # as transformer.py and fusers.py name them
    "self": "self_attention",
    "fuser": "fuser",
    "text": "cross_attention",
}


@dataclass(frozen=True, order=True)
class Place:
    level: str  # `UNetLevel.name`: "down_0", "mid_0", "up_2"
    transformer: int  # index in the level
    block: int  # index in the transformer
    attention: Attention

    def __str__(self) -> str:
        scope = SCOPES[self.attention]
        return f"{self.level}/transformer_{self.transformer}/block_{self.block}/{scope}"


InBlock = tuple[int, Attention]  # index of a block, and which of its attentions


def within(watch: frozenset[Place], level: str, transformer: int) -> frozenset[InBlock]:
    """The places of one transformer."""
    return frozenset(
        (place.block, place.attention)
        for place in watch
        if (place.level, place.transformer) == (level, transformer)
    )


def places(config: UNetConfig) -> tuple[Place, ...]:
    """Every attention layer, with blocks in execution order, as in `Prepared.blocks`."""
    kinds: tuple[Attention, ...] = ("self", "text") if config.grounding is None else tuple(SCOPES)
    return tuple(
        Place(level.name, transformer, block, kind)
        for level in config.levels()
        for transformer in range(level.attentions)
        for block in range(level.transformer_layers)
        for kind in kinds
    )

"""The attentions of a U-Net by name: where each one is, as a static value.

A place says of an array what it is of, as a name in a dict does; its text is the path of scopes
that a profile has for it, such as "down_0/transformer_1/block_0/cross_attention".
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


@dataclass(frozen=True)
class Place:
    level: str  # `UNetLevel.name`: "down_0", "mid_0", "up_2"
    transformer: int  # of the level
    block: int  # of the transformer
    attention: Attention

    def __str__(self) -> str:
        scope = SCOPES[self.attention]
        return f"{self.level}/transformer_{self.transformer}/block_{self.block}/{scope}"


def places(config: UNetConfig) -> tuple[Place, ...]:
    """Every attention; the blocks in order of execution, as in `Prepared.blocks`."""
    kinds: tuple[Attention, ...] = ("self", "text") if config.grounding is None else tuple(SCOPES)
    return tuple(
        Place(level.name, transformer, block, kind)
        for level in config.levels()
        for transformer in range(level.attentions)
        for block in range(level.transformer_layers)
        for kind in kinds
    )

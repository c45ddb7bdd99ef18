"""The shapes of the U-Net's attention calls."""

from collections import Counter
from typing import NamedTuple

from reground_jax.config import ModelConfig


class Shape(NamedTuple):
    """[branches, queries, heads, width] over `keys`."""

    branches: int
    queries: int
    keys: int
    heads: int
    width: int

    @property
    def macs(self) -> int:
        return 2 * self.branches * self.queries * self.keys * self.heads * self.width

    def __str__(self) -> str:
        return f"{self.branches}x{self.queries} over {self.keys}, {self.heads}x{self.width}"


class AttentionCall(NamedTuple):
    kind: str  # "self", "fuser" or "cross"
    shape: Shape


def attention_calls(
    config: ModelConfig, height: int, width: int, branches: int, max_boxes: int
) -> Counter[AttentionCall]:
    """How often a step with fusers makes each call, from the largest feature map to the smallest.

    height, width: of the latents. branches: samples, those of guidance included.
    """
    calls = Counter[AttentionCall]()
    for level in config.unet.levels():
        queries = -(-height // 2**level.depth) * -(-width // 2**level.depth)
        kinds = {
            "self": queries,
            "fuser": queries + max_boxes,
            "cross": config.text_encoder.network.max_length,
        }
        for kind, keys in kinds.items():
            head = level.channels // level.num_heads
            shape = Shape(branches, queries, keys, level.num_heads, head)
            calls[AttentionCall(kind, shape)] += level.attentions * level.transformer_layers
    return +calls

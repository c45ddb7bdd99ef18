"""The wirings as the papers define them, in diffusers' own U-Net: the reference for ours.

GLIGEN: arXiv 2301.07093; ReGround: arXiv 2403.13589. Each is a formula over the block's own layers;
a new wiring needs one here.
"""

from collections.abc import Sequence
from typing import Any

# Of diffusers' parts, in order of execution.
PARTS = ("down_blocks", "mid_block", "up_blocks")


def rewire(unet: Any, wiring: str, amounts: Sequence[Sequence[float]] | None = None) -> None:
    """Replaces the forward pass of every transformer block in diffusers' U-Net by `wiring`'s.

    amounts: for "coupled", the coupling and the weights of grounding and text of every block, in
    order of execution; by default 1. Running the U-Net raises ValueError for a wiring without a
    formula.
    """

    def forward(
        block: Any,
        x: Any,
        attention_mask: Any = None,
        encoder_hidden_states: Any = None,
        timestep: Any = None,
        cross_attention_kwargs: Any = None,
        **_: Any,
    ) -> Any:
        tokens = (cross_attention_kwargs or {}).get("gligen", {}).get("objs")

        def gsa(h: Any) -> Any:
            return block.fuser(h, tokens) - h

        def ca(h: Any) -> Any:
            return block.attn2(block.norm2(h), encoder_hidden_states=encoder_hidden_states)

        x = x + block.attn1(block.norm1(x))
        if wiring == "coupled":
            coupling, weight, text_weight = block.amounts
            g = gsa(x)
            x = x + weight * g + text_weight * ca(x + coupling * g)
        elif wiring == "parallel":
            x = x + gsa(x) + ca(x)
        elif wiring == "text_first":
            x = x + ca(x)
            x = x + gsa(x)
        elif wiring == "no_text":
            x = x + gsa(x)
        elif wiring == "no_grounding":
            x = x + ca(x)
        elif wiring == "sequential":
            x = x + gsa(x)
            x = x + ca(x)
        else:
            raise ValueError(f"wiring {wiring!r} has no formula here: add it to `rewire`")
        return x + block.ff(block.norm3(x))

    blocks = [
        module
        for part in PARTS
        for module in getattr(unet, part).modules()
        if type(module).__name__ == "BasicTransformerBlock"
    ]
    rows = amounts or [(1.0, 1.0, 1.0)] * len(blocks)
    for block, row in zip(blocks, rows, strict=True):
        block.amounts = tuple(row)
        block.forward = forward.__get__(block)

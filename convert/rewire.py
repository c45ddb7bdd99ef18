"""The wirings as the papers define them, in diffusers' own U-Net: the reference for ours.

GLIGEN: arXiv 2301.07093; ReGround: arXiv 2403.13589. Each is a formula over the block's own layers;
a new wiring needs one here.
"""

from typing import Any


def rewire(unet: Any, wiring: str) -> None:
    """Replaces the forward pass of every transformer block in diffusers' U-Net by `wiring`'s.

    Running the U-Net raises ValueError for a wiring without a formula.
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
        if wiring == "parallel":
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

    for module in unet.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            module.forward = forward.__get__(module)

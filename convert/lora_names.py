"""The names in LoRA files, in all common forms: MODULE + ROLE.

kohya, LyCORIS      lora_unet_MODULE.lora_down.weight, .lora_up.weight, .alpha    (MODULE with _)
diffusers to 0.19   unet.ATTENTION.processor.to_q_lora.down.weight, .up.weight
diffusers to 0.22   unet.MODULE.lora.down.weight; text_encoder.MODULE.lora_linear_layer.down.weight
diffusers, today    unet.MODULE.lora_A.weight, .lora_B.weight; also without "unet."
peft                base_model.model.MODULE.lora_A.weight

MODULE is never parsed: `spellings` lists all names of a module of ours.
"""

import re
from collections.abc import Iterable
from typing import Literal

Role = Literal["down", "up", "alpha"]

PEFT = "base_model.model."
PREFIXES = {"unet": "unet.", "text_encoder": "text_encoder."}  # of diffusers
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
ROLES: dict[str, Role] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",  # of peft's adapter "default", saved with its name
    ".lora_B.default.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
# Adapters that are more than a product of two matrices, by what only their arrays are called.
OTHERS = {
    r"\.hada_": "a LoHa",
    r"\.lokr_": "a LoKr",
    r"\.dora_scale$|\.lora_magnitude_vector\b": "a DoRA",
    r"\.lora_mid\.": "a LoCon in Tucker form (lora_mid)",
    r"\.diff(_b)?$": "a difference of whole weights",
    r"\.[wb]_norm$": "a change of norms",
    r"\.oft_": "an OFT",
    r"\.(a1|a2|b1|b2|bm)\.weight$": "a GLoRA",
    r"\.lora_embedding_[AB]\b": "a LoRA of embeddings",
    r"\.lora_(up|B)(\.default)?\.bias$": "a LoRA with biases",
}


def split(name: str) -> tuple[str, Role] | None:
    """The module and the role of an array, or None if it has none in a LoRA."""
    for ending, role in ROLES.items():
        if name.endswith(ending):
            return name.removesuffix(ending), role
    return None


def other_kind(name: str) -> str | None:
    """The kind of adapter that has an array of this name and is no LoRA, such as "a LoHa"."""
    return next((kind for mark, kind in OTHERS.items() if re.search(mark, name)), None)


def is_lora(names: Iterable[str]) -> bool:
    """Whether arrays of these names are a LoRA, or one of OTHERS."""
    return any((split(name) or ("", "alpha"))[1] != "alpha" or other_kind(name) for name in names)


def spellings(network: str, module: str) -> set[str]:
    """What the forms call a module, which is given by its name in diffusers ("conv_in")."""
    full = f"text_model.{module}" if network == "text_encoder" else module
    dotted = {module, full}
    if network == "text_encoder":
        dotted.add(re.sub(r"\.(q|k|v|out)_proj$", r".to_\1", full))
    elif found := re.fullmatch(r"(.*)\.(to_q|to_k|to_v|to_out)(\.0)?", module):
        dotted.add(f"{found[1]}.processor.{found[2]}")
    prefixes = ("", PREFIXES[network], PEFT)
    names = {prefix + name for prefix in prefixes for name in dotted}
    return names | {KOHYA[network] + full.replace(".", "_")}

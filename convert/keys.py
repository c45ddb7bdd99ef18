"""Maps torch tensors to our parameters: one rule table per network, and a check of completeness.

Our modules are named after diffusers' state dict, so that the few rewrites below translate every
name. Every source format is first renamed to diffusers' names (`ldm.py`, `normalize`).
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Rules = Sequence[tuple[str, str]]

UNET: Rules = (
    (r"(\.attentions\.\d+)\.blocks\.", r"\1.transformer_blocks."),
    (r"\.ff\.geglu\.proj\.", ".ff.net.0.proj."),
    (r"\.ff\.out\.", ".ff.net.2."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.(down|up)sampler\.", r".\1samplers.0."),
    (r"^position_net\.(linears\w*)\.2\.", r"position_net.\1.4."),  # the odd ones are SiLUs
    (r"^position_net\.(linears\w*)\.1\.", r"position_net.\1.2."),
    (r"^position_net\.backbone\.", "position_net.convnext_tiny_backbone."),
    (r"^downsample_net\.layers\.1\.", "downsample_net.layers.2."),
)
VAE: Rules = (
    (r"\.attention\.", ".attentions.0."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.(down|up)sampler\.", r".\1samplers.0."),
)
TEXT: Rules = (
    (r"^(token|position)_embedding\.", r"embeddings.\1_embedding."),
    (r"^layers\.", "encoder.layers."),
)
VISION: Rules = (
    (r"^(class|patch|position)_embedding\b", r"embeddings.\1_embedding"),
    (r"^pre_layernorm\.", "pre_layrnorm."),  # sic
    (r"^layers\.", "encoder.layers."),
)


def _inside(part: str, rules: Rules) -> Rules:
    """The rules of a network that is a part of another."""
    return tuple((rf"^{part}\.{p.removeprefix('^')}", f"{part}.{r}") for p, r in rules)


CLIP: Rules = (
    (r"^vision_model\.visual_projection\.", "visual_projection."),
    *_inside("text_model", TEXT),
    *_inside("vision_model", VISION),
)
PROJECT: Rules = ((r"^", "project."),)  # diffusers' CLIPImageProjection
RULES: dict[str, Rules] = {
    "unet": UNET,
    "vae": VAE,
    "text_encoder": TEXT,
    "image_encoder": VISION,
    "image_project": PROJECT,
    "clip": CLIP,
    "inception": (),
}

PACKED = {  # one of ours is several of theirs, concatenated
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
}
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}

OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# The positions 0, 1, 2, ..., stored in old files but not part of the model.
POSITIONS = re.compile(r"(^|\.)embeddings\.position_ids$")
# Parts that are not used, most of them for training only, by normalized name.
FOREIGN = {
    "unet": re.compile(r"$^"),
    "vae": re.compile(r"^(loss|model_ema)\."),
    "text_encoder": re.compile(r"^(logit_scale|text_projection(\.weight)?)$"),
    "image_encoder": re.compile(r"^(logit_scale$|text_projection\.weight$|text_model\.)"),
    "image_project": re.compile(r"$^"),
    "clip": re.compile(r"$^"),
    "inception": re.compile(r"^fc\.|\.num_batches_tracked$"),
}


class KeyMismatch(ValueError):
    """The tensors of a source and the parameters of its config do not match one to one."""


@dataclass(frozen=True)
class Leaf:
    """One of our parameters, the tensors it is built from, and its shape."""

    path: str  # "unet/conv_in/kernel"
    sources: tuple[str, ...]  # names in the network's diffusers state dict
    shape: tuple[int, ...]

    def source_shapes(self) -> set[tuple[int, ...]]:
        """The shapes that each of the sources may have."""
        if not self.shape:
            return {()}
        *inner, fan_out = self.shape
        fan_out //= len(self.sources)
        if not self.path.endswith("/kernel"):
            return {(*inner, fan_out)}
        if len(inner) == 3:  # OIHW for our HWIO
            return {(fan_out, inner[2], inner[0], inner[1])}
        return {(fan_out, inner[0]), (fan_out, inner[0], 1, 1)}

    def build(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        """Our parameter from its tensors: outputs last, channels last, packed ones concatenated."""
        if self.path.endswith("/kernel"):
            if len(self.shape) == 4:
                tensors = [t.transpose(2, 3, 1, 0) for t in tensors]
            else:  # linear, or a 1x1 convolution
                tensors = [t.reshape(t.shape[:2]).T for t in tensors]
        return np.concatenate(tensors, axis=-1) if len(tensors) > 1 else tensors[0]

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """Inverse of `build`: the tensors of our parameter; a 1x1 convolution's are matrices."""
        parts = np.split(array, len(self.sources), axis=-1) if len(self.sources) > 1 else [array]
        if not self.path.endswith("/kernel"):
            return parts
        return [part.transpose(3, 2, 0, 1) if part.ndim == 4 else part.T for part in parts]


def leaves_of(shapes: dict[str, tuple[int, ...]]) -> list[Leaf]:
    """A leaf for each of our parameters, in the order of `shapes`, which are by path."""
    return [Leaf(path, torch_names(path), shape) for path, shape in shapes.items()]


def count(leaves: Sequence[Leaf]) -> int:
    """Of their parameters."""
    return sum(math.prod(leaf.shape) for leaf in leaves)


def torch_names(path: str) -> tuple[str, ...]:
    """The diffusers names for one of our paths, without the network's name."""
    network, *parts = path.split("/")
    parts[-1] = LEAVES.get(parts[-1], parts[-1])
    name = ".".join(parts)
    for pattern, replacement in RULES[network]:
        name = re.sub(pattern, replacement, name)
    for packed, singles in PACKED.items():
        if f".{packed}." in name:
            return tuple(name.replace(f".{packed}.", f".{single}.") for single in singles)
    return (name,)


def normalize(network: str, name: str) -> str:
    """A tensor's current diffusers name, without CLIP's prefixes or old VAE names."""
    if network == "text_encoder":
        return re.sub(r"^(transformer\.)?(text_model\.)?", "", name)
    if network == "image_encoder":
        return name.removeprefix("vision_model.")
    if network == "vae":
        return re.sub(
            r"(attentions\.0\.)(query|key|value|proj_attn)\.",
            lambda m: m[1] + OLD_VAE_ATTENTION[m[2]] + ".",
            name,
        )
    return name


def match(
    shapes: dict[str, tuple[int, ...]], tensors: dict[str, dict[str, tuple[int, ...]]]
) -> list[Leaf]:
    """A leaf for each of our parameters, in the order of `shapes`.

    shapes: of ours, by path. tensors: shapes of theirs, by network and normalized name. Raises
    KeyMismatch that lists every parameter without a tensor (-), tensor without a parameter (+) and
    wrong shape (!).
    """
    leaves = leaves_of(shapes)
    problems, used = [], set()
    for leaf in leaves:
        network = leaf.path.split("/")[0]
        allowed = leaf.source_shapes()
        for name in leaf.sources:
            used.add((network, name))
            found = tensors[network].get(name)
            if found is None:
                problems.append(f"- {network}: {name} is missing (for {leaf.path})")
            elif found not in allowed:
                wanted = " or ".join(map(str, sorted(allowed, key=len)))
                problems.append(
                    f"! {network}: {name} has shape {found}, but the config requires {wanted}"
                )
    problems += [f"+ {n}: {name} matches no parameter" for n, name in _unused(tensors, used)]
    if problems:
        raise KeyMismatch(
            f"{len(problems)} tensors do not fit the model that the config describes:\n  "
            + "\n  ".join(problems)
        )
    return leaves


def foreign(tensors: dict[str, dict[str, Any]]) -> list[str]:
    """The tensors that `match` skips as FOREIGN, as NETWORK: NAME."""
    return [
        f"{network}: {name}"
        for network, names in tensors.items()
        for name in names
        if FOREIGN[network].search(name)
    ]


def _unused(
    tensors: dict[str, dict[str, tuple[int, ...]]], used: set[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    for network, names in tensors.items():
        for name in names:
            known = POSITIONS.search(name) or FOREIGN[network].search(name)
            if (network, name) not in used and not known:
                yield network, name

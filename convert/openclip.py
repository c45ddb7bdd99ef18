"""OpenCLIP's text transformer, which single files of Stable Diffusion 2.x have, as a CLIP's.

It has other names, queries, keys and values in one array, and a last layer that Stable Diffusion
skips. Source: diffusers' `loaders/single_file_utils.py`, convert_open_clip_checkpoint.
"""

import re
from collections.abc import Iterator

from .sources import TensorFile
from .stored import StoredArray

PREFIX, CLIP_PREFIX = "cond_stage_model.model.", "cond_stage_model.transformer.text_model."
HEAD_WIDTH = 64  # of this transformer, and of the U-Nets that read it
PAD = 0  # token id that fills texts up, "!" in CLIP's vocabulary
PAD = 0  # token id that fills texts up, "!" in CLIP's vocabulary
VIT_H_WIDTH, VIT_H_USED = 1024, 23  # layers that are used of 24; some files have no 24th
LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
PARTS = (
    (r"^ln_(\d)\.", r"layer_norm\1."),
    (r"^attn\.", "self_attn."),
    (r"^mlp\.c_fc\.", "mlp.fc1."),
    (r"^mlp\.c_proj\.", "mlp.fc2."),
)
ROOTS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
UNUSED = ("attn_mask", "logit_scale", "text_projection")  # the mask is the causal one


def has_openclip(file: TensorFile) -> bool:
    """Whether a single file has OpenCLIP's text transformer, as those of Stable Diffusion 2.x."""
    return any(name.startswith(PREFIX) for name in file.keys())


def as_clip(file: TensorFile) -> TensorFile:
    """The same single file with CLIP's names, and only the arrays that Stable Diffusion uses.

    Names that are not OpenCLIP's stay as they are. Raises ValueError if queries, keys and values
    are not three arrays of one size.
    """
    text = {n.removeprefix(PREFIX): n for n in file.keys() if n.startswith(PREFIX)}
    layers = [int(found[1]) for inner in text if (found := LAYER.fullmatch(inner))]
    norm = text.get("ln_final.weight")
    is_vit_h = norm is not None and file.shape(norm) == (VIT_H_WIDTH,)
    used = VIT_H_USED if is_vit_h else max(layers, default=0)
    arrays = {name: file.stored(name) for name in file.keys() if not name.startswith(PREFIX)}
    for inner, name in text.items():
        layer = LAYER.fullmatch(inner)
        if inner not in UNUSED and (layer is None or int(layer[1]) < used):
            for clips, array in _clips(inner, name, file.stored(name)):
                arrays[CLIP_PREFIX + clips] = array
    return TensorFile(arrays, file.name)


def _clips(inner: str, name: str, array: StoredArray) -> Iterator[tuple[str, StoredArray]]:
    """The CLIP names of an array and what it is there; those that are unknown stay."""
    layer = LAYER.fullmatch(inner)
    if layer is None:
        yield ROOTS.get(inner, inner), array
        return
    index, part = layer.groups()
    for pattern, replacement in PARTS:
        part = re.sub(pattern, replacement, part)
    if ".in_proj_" not in part:
        yield f"encoder.layers.{index}.{part}", array
        return
    if not array.shape or array.shape[0] % 3:
        raise ValueError(
            f"{array.path}: {name} has shape {array.shape}, but it should hold queries, keys and "
            "values one after another: the checkpoint is damaged"
        )
    for which, letter in enumerate("qkv"):
        single = part.replace(".in_proj_", f".{letter}_proj.")
        yield f"encoder.layers.{index}.{single}", array.rows(which, 3)

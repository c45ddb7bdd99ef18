"""Stable Diffusion's first convolution, which a map model uses in its steps without fusers.

GLIGEN's map checkpoints do not hold it: their own was widened and trained further. The original
code reads it from `SD_input_conv_weight_bias.pth`; any Stable Diffusion 1.4 has the same.
"""

from pathlib import Path

from reground_jax.basics.home import expand_home

from .forms import form_of
from .pickles import load_torch
from .sources import TensorFile, open_folder, open_original, open_tensors, resolve

LEAVES = ("weight", "bias")
ORIGINAL, LDM = "input_blocks.0.0.", "model.diffusion_model.input_blocks.0.0."


def find_first_conv(source: str | Path) -> tuple[TensorFile, dict[str, str]]:
    """The file that has the convolution, and its names of "weight" and "bias".

    source: that .pth file, or a Stable Diffusion 1.4 in any form that `convert` reads. Raises
    ValueError if it has none.
    """
    path = expand_home(source)
    if path.is_file() and form_of(path) == "torch":
        content = load_torch(path)
        if isinstance(content, dict) and set(content) == set(LEAVES):
            return TensorFile(content, str(path)), {leaf: leaf for leaf in LEAVES}
    found = resolve(source)
    match found.kind:
        case "original":
            file, prefix = open_original(found.path)[0]["model"], ORIGINAL
        case "ldm":
            file, prefix = open_tensors(found.path), LDM
        case "diffusers":
            file, prefix = open_folder(found.path / "unet"), "conv_in."
        case _:
            raise ValueError(f"{source} ({found.kind}) has no first convolution: {WAY_OUT}")
    names = {leaf: prefix + leaf for leaf in LEAVES}
    if missing := [name for name in names.values() if name not in file]:
        raise ValueError(f"{source} has no {', '.join(missing)}: {WAY_OUT}")
    return file, names


WAY_OUT = (
    "pass SD_input_conv_weight_bias.pth from GLIGEN's repository, or a Stable Diffusion 1.4 "
    "checkpoint, with --first-conv"
)

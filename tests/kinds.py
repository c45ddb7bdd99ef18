"""The original tiny checkpoints of all kinds, converted, and inputs as people have them."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from reground_jax.convert.conversion import convert
from reground_jax.kinds import MAP_KINDS
from reground_jax.layout import Layout
from tests.fixtures import DATA
from tests.originals import write_tiny_tokenizer

ALL = ("text_box", "inpaint", "text_image", "text_image_inpaint", "keypoint", *MAP_KINDS)
INPAINTING = ("inpaint", "text_image_inpaint")
BOX, OTHER, STYLE = (0.1, 0.2, 0.6, 0.7), (0.5, 0.5, 0.9, 1.0), (0.0, 1.0, 0.0, 1.0)


def source(name: str, folder: Path = DATA) -> Path:
    return folder / f"original_{name}_tiny.bin"


def write_clip(folder: Path, width: int) -> Path:
    """A tiny image encoder, as transformers stores it."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=40, intermediate_size=80, projection_dim=width, num_hidden_layers=2,
        num_attention_heads=4, image_size=28, patch_size=7,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def companions(path: Path, folder: Path) -> dict[str, Any]:
    """What `convert` needs besides the checkpoint at `path`, written into `folder`."""
    with np.load(path.with_suffix(".npz")) as arrays:
        found: dict[str, Any] = {"tokenizer": write_tiny_tokenizer(folder / "tokenizer")}
        if "projection_matrix" in arrays:
            matrix = arrays["projection_matrix"]
            torch.save(torch.from_numpy(matrix), folder / "projection_matrix")
            found["projection"] = folder / "projection_matrix"
            found["clip"] = write_clip(folder / "clip", matrix.shape[0])
        if "sd_conv_weight" in arrays:
            parts = ("weight", "bias")
            conv = {part: torch.from_numpy(arrays[f"sd_conv_{part}"]) for part in parts}
            found["first_conv"] = folder / "SD_input_conv_weight_bias.pth"
            torch.save(conv, found["first_conv"])
    return found


@functools.cache
def converted(name: str, folder: Path = DATA) -> Path:
    """The model directory of a fixture."""
    place = Path(tempfile.mkdtemp(prefix=f"reground-{name}-"))
    path = source(name, folder)
    convert(path, place / "model", **companions(path, place))
    return place / "model"


@functools.cache
def pictures() -> Path:
    """A folder of inputs: maps, a reference, a photograph and a pose."""
    folder = Path(tempfile.mkdtemp(prefix="reground-pictures-"))
    for name in MAP_KINDS:
        with np.load(source(name).with_suffix(".npz")) as arrays:
            pixels = arrays["sem_index" if name == "sem" else "map_uint8"][0]
        Image.fromarray(pixels).save(folder / f"{name}.png")
    rng = np.random.default_rng(0)
    for name, size in (("clock.png", (60, 90)), ("beach.png", (100, 160))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    second = [[0.1, 0.5, 2 * (i % 2)] for i in range(17)]
    first = [[0.3 + 0.02 * i, 0.2 + 0.03 * i] for i in range(17)]
    (folder / "pose.json").write_text(json.dumps([second, first]))
    return folder


def request(name: str) -> dict[str, Any]:
    """A layout in JSON for a kind, its paths relative to `pictures()`."""
    value: dict[str, Any] = {"prompt": "a bird", "negative_prompt": "worst quality"}
    if name in MAP_KINDS:
        value["map"] = f"{name}.png"
    elif name == "keypoint":
        value["keypoints"] = json.loads((pictures() / "pose.json").read_text())
    else:
        value |= {"phrases": ["a clock", "a bird"], "boxes": [BOX, OTHER]}
    if name.startswith("text_image"):
        value["phrases"] = ["a clock", None, "a bird", None]
        value["boxes"] = [BOX, OTHER, OTHER, STYLE]
        value["images"] = ["clock.png", "beach.png", None, "beach.png"]
        value |= {"image_weights": [0.5, 1, 1, 1], "phrase_weights": 1}
    if name in INPAINTING:
        value["source"] = "beach.png"
    return value


def layout(name: str, **changes: Any) -> Layout:
    return Layout.from_json(request(name) | changes, folder=pictures())

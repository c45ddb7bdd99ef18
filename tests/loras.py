"""The model that the LoRA fixtures are for, and LoRA files to write."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from reground_jax.convert.conversion import gather
from reground_jax.convert.gathered import Gathered
from reground_jax.convert.keys import Leaf, leaves_of
from reground_jax.convert.lora import read
from reground_jax.convert.sources import resolve
from reground_jax.model import leaf_shapes
from tests.fixtures import fixtures

BASE = fixtures() / "lora_base"
# A module of the U-Net that every form names, and of the text encoder.
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_QUERY = "encoder.layers.0.self_attn.q_proj"


@functools.cache
def base() -> Gathered:
    return gather(resolve(BASE))


@functools.cache
def leaves() -> list[Leaf]:
    return leaves_of(leaf_shapes(base().config))


def kohya(module: str, prefix: str = "lora_unet_") -> str:
    return prefix + module.replace(".", "_")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def width(name: str) -> tuple[int, ...]:
    """The shape of a U-Net's weight."""
    tensor = base().tensors["unet"][f"{name}.weight"]
    return tensor.file.shape(tensor.name)


def pair(module: str, rank: int = 2, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """kohya's arrays for a module of the U-Net, by role."""
    outputs, *inputs = width(module)
    ones = [1] * (len(inputs) - 1)
    arrays = {
        "lora_down.weight": normal(rank, *inputs),
        "lora_up.weight": normal(outputs, rank, *ones, seed=1),
    }
    return {f"{kohya(module)}.{role}": array for role, array in (arrays | changes).items()}


def save(path: Path, arrays: Mapping[str, Any], metadata: dict[str, str] | None = None) -> Path:
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, path, metadata)
    return path


def peft(folder: Path, modules: tuple[str, ...] = (QUERY,), **config: Any) -> Path:
    """Writes a folder as peft does, of rank 4; returns its file of arrays."""
    arrays = {f"base_model.model.{m}.lora_A.weight": normal(4, 32) for m in modules}
    arrays |= {f"base_model.model.{m}.lora_B.weight": normal(32, 4) for m in modules}
    folder.mkdir(exist_ok=True)
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return save(folder / "adapter_model.safetensors", arrays)


def factor(path: Path, module: str = QUERY, network: str = "unet") -> float:
    """What a file multiplies the product of a module with."""
    return read(path, leaves())[network][f"{module}.weight"].factor

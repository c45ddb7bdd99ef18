"""LoRA files: what they add to the weights of a model, by our tensors' names.

A file's modules are looked up in a table of all spellings (`lora_names`) of our own parameters, and
its deltas are added to the source's tensors, before these are packed (`sources.Located.read`).
"""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reground_jax.basics.wording import named, plural, shown

from .forms import form_of, sha256_of
from .keys import Leaf
from .lora_names import is_lora, other_kind, spellings, split
from .lora_scaling import Scaling, read_scaling
from .low_rank import Delta, squeezed
from .safetensors import read_metadata
from .sources import TensorFile, Tensors, open_tensors, resolve_lora
from .stored import StoredArray

Scale = float | tuple[float, float]  # of both networks, or of U-Net and text encoder
Deltas = dict[str, dict[str, tuple[Delta, ...]]]  # network -> diffusers name of a weight -> deltas

NETWORKS = ("unet", "text_encoder")
MOST_RANK = 2**14
SHOWN = 3  # modules in a message
BASES = ("ss_base_model_version", "modelspec.architecture")  # of kohya's metadata
SDXL = ("lora_te1_", "lora_te2_", "text_encoder_2.", "lora_unet_input_blocks_")


@dataclass(frozen=True)
class Lora:
    """A LoRA to add, and its scales for the U-Net and for the text encoder."""

    source: str  # a path or Hub id, as it was given
    path: Path  # of its file
    scales: tuple[float, float]

    def record(self) -> dict[str, Any]:
        """What `info` says of it."""
        scales = list(self.scales)
        return {"path": self.source, "sha256": sha256_of(self.path), "scales": scales}


def find(loras: Sequence[Any]) -> list[Lora]:
    """The files of pairs of a path or Hub id and a Scale.

    Raises ValueError for what is no such pair, or no finite scale, before it looks for any file.
    """
    scales = [_scales(entry) for entry in loras]
    return [
        Lora(str(source), resolve_lora(source), pair)
        for (source, _), pair in zip(loras, scales, strict=True)
    ]


def _scales(entry: Any) -> tuple[float, float]:
    """The scales of the U-Net and of the text encoder in an element of `loras`."""
    match entry:
        case (str() | Path() as source, scale):
            pair = scale if isinstance(scale, tuple | list) else (scale, scale)
        case _:
            raise ValueError(f"loras has {shown(entry)}: give pairs of a path and a scale")
    if len(pair) != 2 or not all(map(_is_finite, pair)):
        raise ValueError(
            f"the scale of LoRA {source} is {shown(scale)}: it must be a finite number, or two of "
            "them, for the U-Net and for the text encoder"
        )
    return float(pair[0]), float(pair[1])


def _is_finite(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def deltas_of(loras: Sequence[Lora], leaves: Sequence[Leaf]) -> Deltas:
    """What all LoRAs together add to a model of these leaves. Raises ValueError as `read` does."""
    total: Deltas = {network: {} for network in NETWORKS}
    for lora in loras:
        found = read(lora.path, leaves)
        for network, scale in zip(NETWORKS, lora.scales, strict=True):
            for name, delta in found[network].items():
                scaled = dataclasses.replace(delta, factor=scale * delta.factor)
                total[network][name] = (*total[network].get(name, ()), scaled)
    return total


def with_deltas(tensors: Tensors, deltas: Deltas) -> Tensors:
    """The same tensors, to which reading adds the deltas."""
    return {
        network: {
            name: dataclasses.replace(tensor, deltas=deltas.get(network, {}).get(name, ()))
            for name, tensor in named.items()
        }
        for network, named in tensors.items()
    }


def read(path: Path, leaves: Sequence[Leaf]) -> dict[str, dict[str, Delta]]:
    """What a LoRA adds at scale 1: a delta by network and diffusers name ("conv_in.weight").

    leaves: of the model, which may have any other networks. Reads no matrices. Raises ValueError
    for a file that is no LoRA or another kind of adapter, or is damaged, and for one that names
    modules that the model does not have, or changes weights of other shapes.
    """
    file = open_tensors(path)
    metadata = read_metadata(path) if form_of(path) == "safetensors" else {}
    modules = _modules(path, file)
    scaling = read_scaling(path, modules, metadata)
    table = module_table(leaves)
    if unknown := [module for module in modules if module not in table]:
        raise ValueError(
            f"{path} changes {plural(len(unknown), 'module')} that this model does not have "
            f"({_some(unknown)}): {_other_base(metadata, unknown)}"
        )
    found: dict[str, dict[str, Delta]] = {network: {} for network in NETWORKS}
    wrong = []
    for module, roles in modules.items():
        leaf, name = table[module]
        delta = _delta(path, module, roles, scaling)
        allowed = {squeezed(shape) for shape in leaf.source_shapes()}
        if delta.shape not in allowed:
            wrong.append(f"{named(module)} is for {delta.shape}, here {allowed.pop()}")
        network = leaf.path.split("/")[0]
        if name in found[network]:
            raise ValueError(
                f"{path} changes one weight twice, as {named(found[network][name].module)} and as "
                f"{named(module)}: use another copy"
            )
        found[network][name] = delta
    if wrong:
        raise ValueError(
            f"{path} changes {plural(len(wrong), 'weight')} of other shapes than this model's "
            f"({_some(wrong, '; ')}): {_other_base(metadata, modules)}"
        )
    return found


def module_table(leaves: Sequence[Leaf]) -> dict[str, tuple[Leaf, str]]:
    """The leaf, and the name of the weight in diffusers, for every spelling of its module."""
    table = {}
    for leaf in leaves:
        network, *_ = leaf.path.split("/")
        if network in NETWORKS and leaf.path.endswith("/kernel"):
            for name in leaf.sources:
                for spelling in spellings(network, name.removesuffix(".weight")):
                    table[spelling] = leaf, name
    return table


def _modules(path: Path, file: TensorFile) -> dict[str, dict[str, StoredArray]]:
    """The arrays of each module by role. Raises ValueError for arrays without one."""
    names = file.keys()
    for name in names:
        if kind := other_kind(name):
            raise ValueError(
                f"{path} is {kind} ({named(name)}), which changes weights in another way than a "
                "LoRA: merge it into the checkpoint with the program that made it"
            )
    if not is_lora(names):
        raise ValueError(
            f"{path} is not a LoRA: it has {plural(len(names), 'array')} ({_some(names)}); a "
            "checkpoint is the source, and GLIGEN's layers alone go with --adapter"
        )
    modules: dict[str, dict[str, StoredArray]] = {}
    strangers = []
    for name in names:
        if (found := split(name)) is None:
            strangers.append(name)
            continue
        module, role = found
        if role in modules.setdefault(module, {}):
            raise ValueError(f"{path} has two arrays {role} of {named(module)}: use another copy")
        modules[module][role] = file.stored(name)
    if strangers:
        raise ValueError(
            f"{path} has {plural(len(strangers), 'array')} that no LoRA has ({_some(strangers)}): "
            "without them the result would not be what was trained"
        )
    return modules


def _delta(path: Path, module: str, roles: Mapping[str, StoredArray], scaling: Scaling) -> Delta:
    """One module's delta, whose matrices fit each other."""
    if lost := [role for role in ("down", "up") if role not in roles]:
        raise ValueError(
            f"{path} has no array {' and '.join(lost)} of {named(module)}: it is damaged, or not "
            "a LoRA; use another copy"
        )
    down, up = roles["down"], roles["up"]
    rank = down.shape[0] if down.shape else 0
    if (
        len(down.shape) not in (2, 4)
        or squeezed(up.shape)[1:] != (rank,)
        or not 1 <= rank <= MOST_RANK
    ):
        raise ValueError(
            f"{path}: {named(module)} has matrices of shapes {down.shape} (down) and {up.shape} "
            "(up), which should be [rank, inputs] and [outputs, rank]: use another copy"
        )
    return Delta(module, down, up, scaling.factor(module, rank, roles.get("alpha")))


def _some(names: Sequence[str], between: str = ", ") -> str:
    """The first names, as they may be in a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(map(named, names[:SHOWN])) + more


def _other_base(metadata: Mapping[str, str], modules: Iterable[str]) -> str:
    """Why a LoRA does not fit, with what it says of its own base."""
    said = [named(metadata[field]) for field in BASES if field in metadata]
    if not said and any(module.startswith(SDXL) for module in modules):
        said = ["SDXL, by its names"]
    return "it is for another base" + (f" ({', '.join(said)})" if said else "")

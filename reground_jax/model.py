"""A model: its configuration, its arrays and its tokenizer; and the directory that holds them.

DIR/config.json      format, network configs, noise schedule, tokenizer settings, facts (`info`)
DIR/tokenizer.json   of the `tokenizers` library
DIR/arrays/NNN/      Orbax checkpoints, the arrays of all networks by name

A directory may stand on another one, its base (`"base"` in config.json, a relative path), and then
holds only the arrays that differ: fusers trained on one frozen model share its bulk.
"""

import functools
import glob
import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from reground_jax.checkpoint import (
    CheckpointError,
    flatten,
    load_arrays,
    save_arrays,
    unflatten,
)
from reground_jax.config import ModelConfig
from reground_jax.networks.clip import CLIPTextModel
from reground_jax.networks.unet import UNet
from reground_jax.networks.vae import AutoencoderKL

FORMAT = "reground-jax/1"
NETWORKS = ("text_encoder", "unet", "vae")

Params = dict[Any, Any]  # nested dict of arrays, as nnx.to_pure_dict gives it


@dataclass(frozen=True)
class Model:
    config: ModelConfig
    params: Params  # {"unet": ..., "vae": ..., "text_encoder": ...}
    tokenizer_json: str
    info: dict[str, Any]  # source, checksum, dtype, converter version: facts, not settings


@functools.cache
def network(config: ModelConfig, name: str) -> tuple[nnx.GraphDef, Params]:
    """Graph definition and the shapes of the parameters of one network, without any array."""
    build: Callable[[], nnx.Module] = {
        "text_encoder": lambda: CLIPTextModel(config.text_encoder, rngs=nnx.Rngs(0)),
        "unet": lambda: UNet(config.unet, rngs=nnx.Rngs(0)),
        "vae": lambda: AutoencoderKL(config.vae, rngs=nnx.Rngs(0)),
    }[name]
    graph, state = nnx.split(nnx.eval_shape(build))
    return graph, nnx.to_pure_dict(state)


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by name ("unet/conv_in/kernel"), in the order of the networks."""
    return {
        path: leaf.shape
        for name in NETWORKS
        for path, leaf in flatten({name: network(config, name)[1]})
    }


class Facts:
    """What is recorded of a model's arrays as they pass by."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.dtypes: set[str] = set()
        self.bytes = 0
        self.parameters: dict[str, int] = dict.fromkeys((*NETWORKS, "grounding"), 0)
        self.gates: dict[str, list[float]] = {}

    def add(self, name: str, array: np.ndarray) -> None:
        content = hashlib.sha256(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
        self.digests.append(f"{name} {array.dtype} {array.shape} {content.hexdigest()}")
        self.dtypes.add(str(array.dtype))
        self.bytes += array.nbytes
        self.parameters[name.split("/")[0]] += array.size
        if "/fuser/" in name or "/position_net/" in name:
            self.parameters["grounding"] += array.size
        if name.endswith(("/fuser/alpha_attn", "/fuser/alpha_dense")):
            block = name.removeprefix("unet/").split("/block/")[0]
            self.gates.setdefault(block, []).append(math.tanh(float(array)))

    def checksum(self) -> str:
        """Of names, dtypes, shapes and contents, whatever the order of the arrays."""
        return hashlib.sha256("\n".join(sorted(self.digests)).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """parameters: by network, and the U-Net's share of grounding. gates: tanh(alpha) of each
        fuser's attention and feed-forward, by block."""
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "dtype": "+".join(sorted(self.dtypes)),
            "checksum": self.checksum(),
            "gates": self.gates,
        }


def write_model(
    directory: str | Path,
    config: ModelConfig,
    arrays: Iterable[tuple[str, np.ndarray]],
    tokenizer_json: str,
    info: dict[str, Any],
    *,
    base: str | Path | None = None,
) -> dict[str, Any]:
    """Writes a model directory, all or nothing, and returns `info` with checksum and counts added.

    base: another model directory; arrays equal to its own are not written, and the two must keep
    their places relative to each other. Arrays are written as they come. Everything goes to a
    sibling directory that is renamed at the end, so a process killed at any moment leaves nothing
    that loads. Raises FileExistsError if `directory` exists, CheckpointError if the arrays are not
    those of `config`.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(
            f"{directory} exists already: choose another place, or remove it first"
        )
    shapes, facts = leaf_shapes(config), Facts()
    shared = set() if base is None else _digests(Path(base))

    def checked() -> Iterator[tuple[str, np.ndarray]]:
        for name, array in arrays:
            expected = shapes.pop(name, None)
            if expected != array.shape:
                raise CheckpointError(f"array {name} has shape {array.shape}, expected {expected}")
            array = np.asarray(array, order="C")
            facts.add(name, array)
            if facts.digests[-1] not in shared:
                yield name, array
        if shapes:
            raise CheckpointError(f"arrays missing: {', '.join(sorted(shapes))}")

    partial = _partial(directory)
    try:
        partial.mkdir(parents=True)
        groups = save_arrays(partial / "arrays", checked())
        info = info | facts.summary()
        (partial / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        content = {"format": FORMAT, "groups": groups, "info": info, **config.to_json()}
        if base is not None:
            content["base"] = os.path.relpath(base, directory)
        (partial / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        _publish(partial, directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return info


def _publish(partial: Path, directory: Path) -> None:
    """Renames. Raises FileExistsError if another process has written `directory` meanwhile."""
    try:
        partial.rename(directory)
    except OSError as error:
        if not directory.exists():
            raise
        raise FileExistsError(
            f"{directory} exists now: another process has written it meanwhile"
        ) from error


def _partial(directory: Path) -> Path:
    """A free sibling to write into. Removes what killed processes of this machine left there."""
    prefix, host = f".{directory.name}.partial-", platform.node()
    for path in directory.parent.glob(f"{glob.escape(prefix)}*"):
        pid, _, node = path.name.removeprefix(prefix).partition("@")
        if node == host and pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
    return directory.with_name(f"{prefix}{os.getpid()}@{host}")


def _is_running(pid: int) -> bool:
    """Whether another process has this id; True where that cannot be told."""
    if pid == os.getpid():
        return False
    if os.name != "posix":  # there, `os.kill` would do what it says
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _digests(directory: Path) -> set[str]:
    """What `Facts` notes of every array of a model directory."""
    facts = Facts()
    for name, array in _stored_arrays(directory):
        facts.add(name, array)
    return set(facts.digests)


def _stored_arrays(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """All arrays of a model directory, its own before those that its base adds."""
    description = read_description(directory)
    own = set()
    for name, array in load_arrays(directory / "arrays", description.groups):
        own.add(name)
        yield name, array
    if description.base is not None:
        base = directory / description.base
        yield from ((name, array) for name, array in _stored_arrays(base) if name not in own)


def is_model_directory(path: Path) -> bool:
    """Whether `path` claims to be a model directory of this package (it may still be damaged)."""
    try:
        return json.loads((path / "config.json").read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


class Description(NamedTuple):
    """What config.json says."""

    config: ModelConfig
    info: dict[str, Any]
    groups: int  # of arrays
    base: str | None  # a model directory relative to this one, which holds the arrays not here


def read_description(directory: Path) -> Description:
    """Reads config.json. Raises CheckpointError if damaged or foreign."""
    path = directory / "config.json"
    try:
        content = json.loads(path.read_text())
        kind, groups, info = (content.pop(key) for key in ("format", "groups", "info"))
        base = content.pop("base", None)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{directory} is not a model directory of reground-jax ({path.name} is missing or "
            f"damaged): make one with `reground-jax convert SOURCE {directory}`"
        ) from error
    if kind != FORMAT:
        raise CheckpointError(
            f"{directory} has format {kind!r}, this version reads {FORMAT!r}: convert it again"
        )
    return Description(ModelConfig.from_json(content), info, groups, base)


def read_model(
    directory: str | Path, *, place: Callable[[np.ndarray], Any] = lambda array: array
) -> Model:
    """Reads a model directory; `place` takes each array (in its stored dtype) to where it is used.

    Raises CheckpointError if the directory, or its base, is damaged, foreign or incomplete.
    """
    directory = Path(directory)
    description = read_description(directory)
    config, info = description.config, description.info
    shapes, facts = leaf_shapes(config), Facts()
    leaves: dict[str, Any] = {}
    for name, array in _stored_arrays(directory):
        if shapes.get(name) != array.shape:
            raise CheckpointError(
                f"{directory}: array {name} has shape {array.shape}, its config.json asks for "
                f"{shapes.get(name)}: convert the checkpoint again"
            )
        facts.add(name, array)
        leaves[name] = place(array)
    if missing := sorted(set(shapes) - set(leaves)):
        raise CheckpointError(f"{directory} lacks {len(missing)} arrays, such as {missing[0]}")
    if facts.checksum() != info["checksum"]:
        raise CheckpointError(f"{directory}: its arrays are damaged (checksum): convert it again")
    try:
        tokenizer_json = (directory / "tokenizer.json").read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{directory}/tokenizer.json is missing: convert it again") from error
    return Model(config, unflatten(leaves.items()), tokenizer_json, info)


def nonfinite_arrays(params: Params) -> list[str]:
    """Names of the arrays that hold NaN or infinity."""
    return [
        name
        for name, array in flatten(params)
        if not np.isfinite(np.asarray(array, np.float32)).all()
    ]


def random_params(config: ModelConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Random float32 arrays for every parameter, none of them trivial: for demos and tests.

    Gates and null features are not 0 and norm scales not 1, so that every part takes part.
    """
    rng = np.random.default_rng(seed)
    for name, shape in leaf_shapes(config).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        kind = name.rsplit("/", 1)[-1]
        if kind == "kernel":
            values /= np.sqrt(np.prod(shape[:-1]))
        elif kind == "scale":
            values = 1 + 0.1 * values
        elif kind == "bias":
            values *= 0.1
        yield name, np.asarray(values, np.float32)


def count_parameters(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))

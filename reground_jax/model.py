"""A model (configuration, arrays and tokenizer), and the directory that holds it.

DIR/config.json      format, network configs, noise schedule, tokenizer settings, facts (`info`),
                     and the settings recommended for the model (`recommended`), if any
DIR/tokenizer.json   in the format of the `tokenizers` library
DIR/arrays/NNN/      Orbax checkpoints: the arrays of all networks by name

Networks are named like diffusers' folders; a second text encoder, which no model has yet, would be
"text_encoder_2", with a tokenizer_2.json. "image_encoder" and "image_project" are only in models
with grounding by reference images. Directories in the previous format can also be read
(format1.py).

A directory may have another one as its base (`"base"` in config.json, a relative path), and then
holds only the arrays that differ: models that differ only in their fusers share the rest.
"""

import contextlib
import functools
import glob
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from reground_jax.basics.atomic import publish
from reground_jax.config import ModelConfig, check_together
from reground_jax.networks.clip import CLIPTextModel
from reground_jax.networks.clip_vision import CLIPVisionModel
from reground_jax.networks.layers import Linear
from reground_jax.networks.unet import UNet
from reground_jax.networks.vae import AutoencoderKL
from reground_jax.storage.checkpoint import (
    DTYPES,
    CheckpointError,
    flatten,
    load_arrays,
    save_arrays,
    unflatten,
)
from reground_jax.storage.description import (
    FORMAT,
    WAY_OUT,
    Description,
    check_recommended,
    check_tokenizer,
    checksums,
    read_description,
)
from reground_jax.storage.description import is_model_directory as is_model_directory
from reground_jax.storage.facts import Facts, combined, digest, word_sum

MAX_BASES = 8  # in a chain

Params = dict[Any, Any]  # nested dict of arrays, as returned by nnx.to_pure_dict


@dataclass(frozen=True)
class Model:
    config: ModelConfig
    params: Params  # {"unet": ..., "vae": ..., "text_encoder": ...}
    tokenizer_json: str
    info: dict[str, Any]  # source, checksum, dtype, converter version: facts, not settings
    recommended: dict[str, Any] = field(default_factory=dict)  # recommended fields of Settings

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        kinds = "+".join(sorted({str(leaf.dtype) for leaf in leaves}))
        count = sum(leaf.size for leaf in leaves) / 1e6
        return f"Model({self.info.get('source', 'unknown')}, {count:.2f} M parameters, {kinds})"


def build(config: ModelConfig, name: str, rngs: nnx.Rngs) -> nnx.Module:
    """One of `config.networks`, with newly initialized parameters."""
    image = config.image_encoder
    match name:
        case "text_encoder":
            return CLIPTextModel(config.text_encoder.network, rngs=rngs)
        case "unet":
            return UNet(config.unet, rngs=rngs)
        case "vae":
            return AutoencoderKL(config.vae, rngs=rngs)
        case "image_encoder" if image is not None:
            return CLIPVisionModel(image, rngs=rngs)
        case "image_project" if image is not None:
            return Linear(image.projection_width, config.unet.text_width, bias=False, rngs=rngs)
    names = ", ".join(config.networks)
    raise ValueError(f"there is no network {name!r}: it must be one of {names}")


@functools.cache
def network(config: ModelConfig, name: str) -> tuple[nnx.GraphDef, Params]:
    """Graph definition and parameter shapes of one network, without allocating arrays."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(config, name, nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by name ("unet/conv_in/kernel"), in the order of the networks."""
    return {
        path: leaf.shape
        for name in config.networks
        for path, leaf in flatten({name: network(config, name)[1]})
    }


def write_model(
    directory: str | Path,
    config: ModelConfig,
    arrays: Iterable[tuple[str, np.ndarray]],
    tokenizer_json: str,
    info: dict[str, Any],
    *,
    base: str | Path | None = None,
    recommended: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a model directory atomically, and returns `info` with checksum and counts added.

    base: another model directory; arrays equal to its own are not written, and neither it nor the
    path from one to the other may change (both are noticed). recommended: fields of Settings to use
    by default; no checksum depends on them. Arrays are written as they arrive. Everything goes to a
    sibling directory that is renamed at the end, so a process killed at any moment leaves nothing
    loadable. Raises FileExistsError if `directory` exists, CheckpointError if the arrays or the
    tokenizer do not match `config`, ValueError for invalid settings, OSError naming `directory` if
    it cannot be written.
    """
    directory = Path(directory)
    if os.path.lexists(directory):  # a dangling link is in the way, too
        raise FileExistsError(
            f"{directory} already exists: choose another place, or remove it first"
        )
    check_together(config)
    recommended = check_recommended(dict(recommended or {}))
    try:
        check_tokenizer(tokenizer_json, config)
    except ValueError as error:
        raise CheckpointError(f"the tokenizer cannot be used: {error}") from error
    facts = Facts(config.networks)
    shared = set() if base is None else _digests(Path(base))
    new = _new_arrays(arrays, leaf_shapes(config), facts, shared)
    partial = _partial(directory)
    try:
        with _blaming(directory, partial):
            partial.mkdir(parents=True)
            groups = save_arrays(partial / "arrays", new)
            info = info | facts.summary() | checksums(config, tokenizer_json)
            _write(partial / "tokenizer.json", tokenizer_json)
            content = {"format": FORMAT, "groups": groups, "info": info, **config.to_json()}
            if base is not None:
                place = os.path.realpath(directory)  # `..` leads out of there, not of a link
                content["base"] = os.path.relpath(os.path.realpath(base), place)
            if recommended:
                content["recommended"] = recommended
            _write(partial / "config.json", json.dumps(content, indent=2) + "\n")
        _publish(partial, directory)
    except BaseException:
        _remove(partial)
        raise
    return info


def _new_arrays(
    arrays: Iterable[tuple[str, np.ndarray]],
    shapes: dict[str, tuple[int, ...]],
    facts: Facts,
    shared: set[str],
) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays that are not `shared` with a base; adds all to `facts`, checked against `shapes`."""
    missing = dict(shapes)
    for name, array in arrays:
        expected = missing.pop(name, None)
        if expected != array.shape:
            raise CheckpointError(f"array {name} has shape {array.shape}, expected {expected}")
        if str(array.dtype) not in DTYPES:
            raise CheckpointError(f"array {name} is {array.dtype}, expected {' or '.join(DTYPES)}")
        array = np.asarray(array, order="C")
        facts.add(name, array)
        if facts.digests[-1] not in shared:
            yield name, array
    if missing:
        raise CheckpointError(f"missing arrays: {', '.join(sorted(missing))}")


def _remove(partial: Path) -> None:
    """Removes a folder that Orbax's threads may still be writing to after a failure."""
    for _ in range(100):
        shutil.rmtree(partial, ignore_errors=True)
        if not partial.exists():
            return
        time.sleep(0.05)


def _publish(partial: Path, directory: Path) -> None:
    """Renames. Raises FileExistsError if another process wrote `directory` in the meantime."""
    try:
        publish(partial, directory)
    except OSError as error:
        if not directory.exists():
            raise
        raise FileExistsError(
            f"{directory} exists now: another process wrote it in the meantime"
        ) from error


@contextlib.contextmanager
def _blaming(directory: Path, partial: Path) -> Iterator[None]:
    """Makes OSErrors in `partial`, which users do not know, name `directory` instead."""
    try:
        yield
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(partial):
            raise  # from the source of the arrays
        raise OSError(error.errno, error.strerror, str(directory)) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_bytes(text.encode("utf-8"))
    except OSError as error:  # has no file name if the disk is full
        raise OSError(error.errno, error.strerror, str(path)) from error


def _partial(directory: Path) -> Path:
    """A new sibling to write into. Removes those left by killed processes of this machine."""
    prefix, host = f".{directory.name}.partial-", platform.node()
    for path in directory.parent.glob(f"{glob.escape(prefix)}*"):
        pid, _, node = path.name.removeprefix(prefix).partition("@")
        if node == host and pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
    return directory.with_name(f"{prefix}{os.getpid()}@{host}")


def _is_running(pid: int) -> bool:
    """Whether another process has this id; True if that cannot be determined."""
    if pid == os.getpid():
        return False
    if os.name != "posix":  # where `os.kill(pid, 0)` is more than a probe
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def read_model(
    directory: str | Path,
    *,
    place: Callable[[np.ndarray], Any] = lambda array: array,
    check: bool = False,
) -> Model:
    """Reads a model directory; `place` moves each array (in its stored dtype) to where it is used.

    Damaged arrays are detected by sums of their words, in a fiftieth of the time of reading;
    `check` uses SHA-256, as do directories written without sums. Raises CheckpointError if the
    directory or its base is damaged, foreign, incomplete, or edited by hand.
    """
    directory = Path(directory)
    description = read_description(directory)
    config, info = description.config, description.info
    try:
        check_tokenizer(description.tokenizer_json, config)
    except ValueError as error:
        raise CheckpointError(
            f"{directory}/tokenizer.json cannot be used: {error}; {WAY_OUT}"
        ) from error
    shapes = leaf_shapes(config)
    kind, line = ("checksum", digest) if check or "sums" not in info else ("sums", word_sum)
    lines: list[str] = []
    leaves: dict[str, Any] = {}
    for name, array in stored_arrays(directory):
        lines.append(line(description.stored_name(name), array))
        leaves[name] = place(array)
    if missing := sorted(set(shapes) - set(leaves)):
        raise CheckpointError(f"{directory}: {len(missing)} missing arrays, such as {missing[0]}")
    if combined(lines) != info[kind]:
        others = f", or {directory / description.base} was changed" if description.base else ""
        raise CheckpointError(
            f"{directory}: its arrays are damaged (checksum mismatch){others}; convert it again"
        )
    params = unflatten(leaves.items())
    return Model(config, params, description.tokenizer_json, info, description.recommended)


def check_model(directory: str | Path) -> list[str]:
    """Checks all arrays with SHA-256, and returns the names of those with NaN or infinity.

    Raises CheckpointError as `read_model` does.
    """
    finite = read_model(directory, place=lambda array: bool(np.isfinite(array).all()), check=True)
    return [name for name, whole in flatten(finite.params) if not whole]


def nonfinite_arrays(params: Params) -> list[str]:
    """Names of the arrays that hold NaN or infinity."""
    return [
        name
        for name, array in flatten(params)
        if not np.isfinite(np.asarray(array, np.float32)).all()
    ]


def _digests(directory: Path) -> set[str]:
    """The digests, as in `Facts`, of all arrays of a model directory that is to be a base."""
    if len(_chain(directory)) == MAX_BASES:
        raise CheckpointError(f"{directory} has a chain of {MAX_BASES - 1} bases: use one of them")
    return {digest(name, array) for name, array in stored_arrays(directory)}


def stored_arrays(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """All arrays of a model directory: its own, then those that its bases add."""
    chain = _chain(directory)
    wanted = set(leaf_shapes(chain[0][1].config))
    for place, description in chain:
        shapes = leaf_shapes(description.config)
        names = {description.stored_name(name): name for name in shapes}
        stored_shapes = {stored: shapes[name] for stored, name in names.items()}
        for stored, array in load_arrays(place / "arrays", description.groups, stored_shapes):
            if names[stored] in wanted:  # else it is replaced, or only other models use it
                wanted.remove(names[stored])
                yield names[stored], array


def _chain(directory: Path) -> list[tuple[Path, Description]]:
    """A model directory, its base, the base's base, and so on."""
    chain: list[tuple[Path, Description]] = []
    seen: set[str] = set()
    place: Path | None = directory
    while place is not None:
        real = os.path.realpath(place)
        if real in seen:
            raise CheckpointError(
                f"{directory}: its base leads back to {real}: set base in config.json to the "
                "directory that holds the other arrays"
            )
        if len(chain) == MAX_BASES:
            raise CheckpointError(f"{directory} has a chain of {MAX_BASES} bases or more: too many")
        seen.add(real)
        description = _base(chain[-1][0], place) if chain else read_description(place)
        chain.append((place, description))
        # Resolved, since libraries take `..` for the folder with a link, not for its target's.
        base = description.base
        place = None if base is None else Path(os.path.realpath(place / base))
    return chain


def _base(directory: Path, place: Path) -> Description:
    """The description of a model's base. Raises CheckpointError that says what it is needed for."""
    try:
        return read_description(place)
    except CheckpointError as error:
        raise CheckpointError(
            f"{directory} has only the arrays that differ from its base's, and {error}; if the "
            "base was moved, move it back, or set base in config.json to the path from here"
        ) from error


def random_params(config: ModelConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Random, nontrivial float32 arrays for every parameter, for demos and tests.

    Gates and null features are not 0 and norm scales are not 1, so every part has an effect.
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

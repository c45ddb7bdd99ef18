"""Training state: float32 master weights, their moving average, and the optimizer's state.

Parameters are a flat dict here ("unet/conv_in/kernel"), so a predicate on names selects which ones
are trained. Frozen parameters are a separate dict, of any dtype, that no step can modify.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from reground_jax.basics.atomic import publish
from reground_jax.basics.json_text import parse_json
from reground_jax.model import Params
from reground_jax.storage.checkpoint import CheckpointError, load_arrays, save_arrays, unflatten
from reground_jax.storage.format1 import current_name

Leaves = dict[str, Any]  # arrays by flat name
FORMAT = "reground-jax-training/1"
KEPT = 2  # number of checkpoints to keep
WAY_OUT = "remove it to continue from the previous one, or to start over if there is none"


class TrainState(NamedTuple):
    """Everything that a step reads and replaces. Randomness depends on the step alone."""

    step: Int[Array, ""]  # steps done
    params: Leaves  # trainable parameters, float32
    average: Leaves  # their exponential moving average, float32
    moments: optax.OptState


def split_leaves(leaves: Leaves, trainable: Callable[[str], bool]) -> tuple[Leaves, Leaves]:
    """(trained, frozen) by name. Raises ValueError if nothing would be trained."""
    trained = {name: leaf for name, leaf in leaves.items() if trainable(name)}
    if not trained:
        raise ValueError(
            f"no parameter is trainable: the filter matches none of {len(leaves)} names, such as "
            f"{next(iter(leaves), None)!r}"
        )
    return trained, {name: leaf for name, leaf in leaves.items() if name not in trained}


def narrowed(frozen: Leaves, dtype: str) -> Leaves:
    """Frozen leaves as a step holds them: the U-Net's kernels in `dtype`, its arithmetic's.

    Layers cast them to it in any case, so only memory changes. Float32 stay: what layers use as it
    is (norms, embeddings), what they compute in float32 (time steps), and the text encoder and
    autoencoder, which also serve outside the step.
    """
    return {name: leaf.astype(dtype) if _is_cast(name) else leaf for name, leaf in frozen.items()}


def _is_cast(name: str) -> bool:
    timed = "time_embedding" in name or "time_emb_proj" in name
    return name.startswith("unet/") and name.endswith("/kernel") and not timed


def nested(*parts: Leaves) -> Params:
    """Nests flat leaves into the dict that the networks take, keyed by network first."""
    return unflatten((name, leaf) for part in parts for name, leaf in part.items())


def initial_state(trained: Leaves, optimizer: optax.GradientTransformation) -> TrainState:
    # Separate copies, so that the first step can donate the buffers of both.
    params = {name: jnp.array(leaf, jnp.float32) for name, leaf in trained.items()}
    average = {name: jnp.array(leaf, jnp.float32) for name, leaf in trained.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params))


def moving_average(average: Leaves, params: Leaves, step: Int[Array, ""], decay: float) -> Leaves:
    """The updated average; the decay warms up as (1 + step) / (10 + step), up to `decay`."""
    count = step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda a, p: a + (1 - keep) * (p - a), average, params)


def save_state(directory: Path, state: TrainState, record: Mapping[str, Any]) -> Path:
    """Writes `directory`/00001234 atomically, and removes all but the newest `KEPT`.

    record: JSON values for its state.json that identify the run.
    """
    step = int(state.step)
    final, partial = directory / f"{step:08}", directory / f".{step:08}.partial"
    for old in (partial, final):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    groups = save_arrays(partial / "arrays", _named(state))
    content = {"format": FORMAT, "groups": groups, **record}
    (partial / "state.json").write_text(json.dumps(content, indent=1) + "\n")
    publish(partial, final)
    for old in sorted(directory.glob("[0-9]*"))[:-KEPT]:
        shutil.rmtree(old)
    return final


def latest_state(directory: Path) -> Path | None:
    """The newest complete checkpoint under `directory`, or None."""
    found = [path for path in directory.glob("[0-9]*") if (path / "state.json").exists()]
    return max((path for path in found if path.name.isdigit()), default=None)


def read_record(path: Path) -> dict[str, Any]:
    """The content of state.json in `path`. Raises CheckpointError if it cannot be read."""
    try:
        content = parse_json((path / "state.json").read_bytes())
        kind, _ = content["format"], range(content["groups"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a training checkpoint: {WAY_OUT}") from error
    if kind != FORMAT:
        raise CheckpointError(f"{path} has format {kind!r}, but this version reads {FORMAT!r}")
    return content


def load_state(path: Path, like: TrainState) -> TrainState:
    """The state saved in `path`, bit for bit, with the structure of `like`.

    Raises CheckpointError if it is damaged or belongs to another network or optimizer.
    """
    groups = read_record(path)["groups"]
    try:
        arrays = {current_name(n): array for n, array in load_arrays(path / "arrays", groups)}
    except CheckpointError as error:
        raise CheckpointError(f"{path} is damaged or incomplete: {WAY_OUT}") from error
    expected = {name: array.shape for name, array in _named(like)}
    found = {name: array.shape for name, array in arrays.items()}
    if different := sorted(set(expected.items()) ^ set(found.items())):
        raise CheckpointError(
            f"{path} belongs to another model or optimizer ({different[0][0]} differs): use the "
            "config that it was trained with, or another --out folder"
        )
    leaves = [jnp.asarray(arrays[name]).reshape(array.shape) for name, array in _named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(state: TrainState) -> list[tuple[str, np.ndarray]]:
    """(name, array) for every leaf of a state, in tree order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf))
        for path, leaf in flat
    ]

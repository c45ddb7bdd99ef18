"""What training changes: float32 master weights, their moving average, the optimizer's moments.

Parameters are flat here ("unet/conv_in/kernel"): which of them are trained is a predicate on names,
not a second model. Frozen parameters are a separate dict, in any dtype, that no step can touch.
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
KEPT = 2  # checkpoints that stay: the last one, and the one before it
WAY_OUT = "remove it to continue from the one before, or to start again if there is none"


class TrainState(NamedTuple):
    """Everything that a step reads and replaces. Randomness is a function of the step alone."""

    step: Int[Array, ""]  # steps done
    params: Leaves  # trainable ones, float32
    average: Leaves  # exponential moving average of them, float32
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


def nested(*parts: Leaves) -> Params:
    """Flat leaves as the nested dict that the networks take, keyed by network first."""
    return unflatten((name, leaf) for part in parts for name, leaf in part.items())


def initial_state(trained: Leaves, optimizer: optax.GradientTransformation) -> TrainState:
    # Copies, so that the first step may take over the memory of each.
    params = {name: jnp.array(leaf, jnp.float32) for name, leaf in trained.items()}
    average = {name: jnp.array(leaf, jnp.float32) for name, leaf in trained.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params))


def moving_average(average: Leaves, params: Leaves, step: Int[Array, ""], decay: float) -> Leaves:
    """The average after `step` earlier steps; young averages forget faster: (1 + n) / (10 + n)."""
    count = step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda a, p: a + (1 - keep) * (p - a), average, params)


def save_state(directory: Path, state: TrainState, record: Mapping[str, Any]) -> Path:
    """Writes `directory`/00001234 whole or not at all, and removes all but the newest `KEPT`.

    record: JSON values that go into its state.json: what the state is a state of.
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
    """The newest complete checkpoint under `directory`, if there is any."""
    found = [path for path in directory.glob("[0-9]*") if (path / "state.json").exists()]
    return max((path for path in found if path.name.isdigit()), default=None)


def read_record(path: Path) -> dict[str, Any]:
    """What state.json in `path` says. Raises CheckpointError unless this version can read it."""
    try:
        content = parse_json((path / "state.json").read_bytes())
        kind, _ = content["format"], range(content["groups"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no training state: {WAY_OUT}") from error
    if kind != FORMAT:
        raise CheckpointError(f"{path} has format {kind!r}, this version reads {FORMAT!r}")
    return content


def load_state(path: Path, like: TrainState) -> TrainState:
    """The state in `path`, bit for bit, in the structure of `like`.

    Raises CheckpointError if it is damaged, or belongs to another network or optimizer.
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
            f"{path} was written for another model or optimizer ({different[0][0]} differs): use "
            "the config that it was trained with, or another --out folder"
        )
    leaves = [jnp.asarray(arrays[name]).reshape(array.shape) for name, array in _named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(state: TrainState) -> list[tuple[str, np.ndarray]]:
    """Every array of a state with a name of its place, in the order of the tree."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf))
        for path, leaf in flat
    ]

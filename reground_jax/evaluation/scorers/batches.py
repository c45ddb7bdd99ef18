"""Runs a network over any number of images: in batches of one size, on all devices."""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Shaped

from reground_jax.convert.scoring import Network
from reground_jax.devices import SPLIT, WHOLE, Device, choose_devices, over_devices, place_whole

BATCH_SIZE = 16  # images per device

Row = tuple[np.ndarray, ...]  # what the network reads of one image


def in_batches(
    network: Network,
    run: Callable[..., Array],
    *,
    inputs: int,
    devices: Sequence[Device] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Callable[[Iterable[Row]], Shaped[np.ndarray, "N ..."]]:
    """A function from a row for each image to what `run` returns for it.

    run: (module, arrays [B, ...]) -> [B, ...], compiled once. inputs: the number of arrays, and
    of a row's entries. devices: by default, all of this process. batch_size: per device; the last
    batch is filled up with copies. The rows of a batch are taken while the one before runs. The
    parameters are read at the first call.
    """

    def apply(params: Any, *arrays: Array) -> Array:
        return run(nnx.merge(network.graph, params), *arrays)

    @functools.cache
    def ready() -> tuple[int, Callable[..., Array], Any]:
        """Images per batch, the program, and the parameters on the devices."""
        chosen = choose_devices(devices)
        program = over_devices(apply, (WHOLE, *[SPLIT] * inputs), SPLIT, devices=chosen)
        params = jax.tree.map(lambda leaf: place_whole(leaf, chosen), network.read())
        return batch_size * len(chosen), program, params

    def over(rows: Iterable[Row]) -> Shaped[np.ndarray, "N ..."]:
        size, program, params = ready()
        rows, outputs, count = iter(rows), [], 0
        while batch := list(itertools.islice(rows, size)):
            count += len(batch)
            batch += batch[-1:] * (size - len(batch))
            arrays = [np.stack(column) for column in zip(*batch, strict=True)]
            outputs.append(program(params, *arrays))
            jax.block_until_ready(outputs[-2:-1])  # one batch ahead, no more
        return np.concatenate([np.asarray(part) for part in outputs])[:count]

    return over


def version(rules: int, network: Network) -> str:
    """Of a scorer: its rules, and a digest of all files that the network was read from.

    The commit of a Hub id is left out, so that a copy of its files has the same version.
    """
    files = json.dumps(sorted(network.files.items())).encode()
    return f"{rules} {hashlib.sha256(files).hexdigest()}"


def facts(source: Any, network: Network) -> dict[str, Any]:
    """Where the network is from, as plain JSON."""
    return {"source": str(source), "revision": network.revision, "sha256": network.files}


def about(name: str, what: str, source: Any, network: Network) -> str:
    """A section of the report: what is measured, and by which network."""
    commit = f" at {network.revision}" if network.revision else ""
    return f"## {name}\n\n{what}. The network is {source}{commit}, in float32."

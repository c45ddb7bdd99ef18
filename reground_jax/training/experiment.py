"""Whether a folder's training may go on: its checkpoints say what they are checkpoints of.

An identity is what the numbers of a run depend on, as JSON: stage, model, data, loss and recipe.
What only says how often a run logs, draws, saves or where it ends is no part of it.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reground_jax.basics.identity import Difference, differences, listed
from reground_jax.storage.format1 import current_parts
from reground_jax.training.recipe import FREE, Recipe

Changes = list[dict[str, Any]]  # {"step": from which on, "what": ["recipe.num_steps 3 -> 6"]}


def identity_of(recipe: Recipe, rest: Mapping[str, Any]) -> dict[str, Any]:
    fields = dataclasses.asdict(recipe)
    return {**rest, "recipe": {name: fields[name] for name in fields if name not in FREE}}


def changes_since(
    record: Mapping[str, Any], given: Mapping[str, Any], *, checkpoint: Path, accept: bool
) -> Changes:
    """The changes so far of the run in `checkpoint`, which continues as `given`.

    record: what its state.json says. More num_steps are always accepted: the learning rate follows
    the longer schedule from there on. Raises ValueError that lists all other differences, unless
    `accept`.
    """
    step, changes = int(checkpoint.name), list(record.get("changes", ()))
    if "experiment" not in record:
        warnings.warn(
            f"{checkpoint} was written by a version that did not record its experiment: it "
            "continues with what is given now; stop it if that is another config or other data",
            stacklevel=2,
        )
        return [*changes, {"step": step, "what": ["not recorded before"]}]
    recorded = dict(record["experiment"])
    if "model" in recorded:
        recorded["model"] = current_parts(recorded["model"])
    found = differences(recorded, given)
    refused = [d for d in found if not _is_longer(d)]
    if refused and not accept:
        raise ValueError(
            f"{checkpoint.parent} holds another experiment: {listed(refused)}. Give the old config "
            "and data to resume it, another --out to start from scratch, or --accept-changes to "
            "continue anyway, which the model's record will say"
        )
    return [*changes, {"step": step, "what": [str(d) for d in found]}] if found else changes


def _is_longer(difference: Difference) -> bool:
    return difference.name == "recipe.num_steps" and difference.given > difference.recorded

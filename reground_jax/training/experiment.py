"""Checks that a run resumes only from checkpoints of the same experiment.

The identity of an experiment is everything that its numerical results depend on, as JSON: stage,
model, data, loss and recipe. How often a run logs, samples and saves, and where it ends, is not.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reground_jax.basics.identity import Difference, differences, listed
from reground_jax.storage.format1 import current_parts
from reground_jax.training.recipe import FREE, Recipe

Changes = list[dict[str, Any]]  # {"step": first step affected, "what": ["recipe.num_steps 3 -> 6"]}


def identity_of(recipe: Recipe, rest: Mapping[str, Any]) -> dict[str, Any]:
    fields = dataclasses.asdict(recipe)
    return {**rest, "recipe": {name: fields[name] for name in fields if name not in FREE}}


def changes_since(
    record: Mapping[str, Any], given: Mapping[str, Any], *, checkpoint: Path, accept: bool
) -> Changes:
    """All changes to the run in `checkpoint` so far, including those for continuing as `given`.

    record: the content of its state.json. A larger num_steps is always accepted: the learning rate
    follows the longer schedule from there on. Any other difference raises a ValueError that lists
    them all, unless `accept` is set.
    """
    step, changes = int(checkpoint.name), list(record.get("changes", ()))
    if "experiment" not in record:
        warnings.warn(
            f"{checkpoint} was written by a version that did not record its experiment: it "
            "continues with the current config and data; stop it if those have changed",
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
            f"{checkpoint.parent} holds a different experiment: {listed(refused)}. Give the old "
            "config and data to resume it, another --out to start from scratch, or "
            "--accept-changes to continue anyway (the model's record will list the changes)"
        )
    return [*changes, {"step": step, "what": [str(d) for d in found]}] if found else changes


def _is_longer(difference: Difference) -> bool:
    return difference.name == "recipe.num_steps" and difference.given > difference.recorded

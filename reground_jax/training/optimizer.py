"""Builds the optimizer that a recipe describes, over flat parameters."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from reground_jax.storage.facts import GATES
from reground_jax.training.recipe import Recipe
from reground_jax.training.state import Leaves


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Clips, applies AdamW or Muon, then scales the gates' updates. Parameters by flat name."""
    rates = learning_rates(recipe)
    if recipe.optimizer == "muon":
        step = stacked(
            muon(
                rates,
                weight_decay=recipe.weight_decay,
                adam_b2=recipe.beta2,
                muon_weight_dimension_numbers=_matrices,  # type: ignore[arg-type]
                consistent_rms=0.2,
            )
        )
    else:
        step = optax.adamw(rates, b2=recipe.beta2, weight_decay=recipe.weight_decay, mask=_kernels)

    def hurry_gates(updates: Leaves, _: Any) -> Leaves:
        """A gate is a scalar that moves by one learning rate per step: too slow for short runs."""
        return {
            name: update * (recipe.gate_rate if name.endswith(GATES) else 1)
            for name, update in updates.items()
        }

    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        step,
        optax.stateless(hurry_gates),  # type: ignore[arg-type]
    )


def learning_rates(recipe: Recipe) -> optax.Schedule:
    """Linear warm-up from 0, followed by the decay in `recipe.decay`."""
    warm = optax.linear_schedule(0.0, recipe.learning_rate, max(recipe.warmup_steps, 1))
    after = optax.constant_schedule(recipe.learning_rate)
    if recipe.decay == "cosine":
        left = max(recipe.num_steps - recipe.warmup_steps, 1)
        after = optax.cosine_decay_schedule(recipe.learning_rate, left)
    return optax.join_schedules([warm, after], [recipe.warmup_steps])


def _kernels(params: Leaves) -> dict[str, bool]:
    return {name: name.endswith("kernel") for name in params}


STACK = "matrices "  # before the shape, in the names of stacked kernels


def stacked(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on a tree in which all kernels of one shape, as matrices, are one array [n, in, out].

    Muon's iterations are then a few batched products per shape instead of fifteen per kernel: the
    same numbers, in a much smaller program.
    """

    def init(params: Any) -> Any:
        return inner.init(stack(params))  # type: ignore[arg-type]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        before = None if params is None else stack(params)
        after, state = inner.update(stack(updates), state, before)  # type: ignore[arg-type]
        return unstack(after, updates), state  # type: ignore[arg-type]

    return optax.GradientTransformation(init, update)


def stack(leaves: Leaves) -> Leaves:
    """Kernels by their shape as matrices, the last axis being the output; other leaves as is."""
    kept = {name: leaf for name, leaf in leaves.items() if not name.endswith("kernel")}
    return kept | {
        key: jnp.stack([leaves[name].reshape(shape) for name in names])
        for key, (shape, names) in _groups(leaves).items()
    }


def unstack(leaves: Leaves, like: Leaves) -> Leaves:
    """The inverse of `stack`, for leaves of the names and shapes of `like`."""
    found = dict(leaves)
    for key, (_, names) in _groups(like).items():
        parts = zip(names, found.pop(key), strict=True)
        found |= {name: part.reshape(like[name].shape) for name, part in parts}
    return {name: found[name] for name in like}


def _groups(leaves: Leaves) -> Mapping[str, tuple[tuple[int, int], list[str]]]:
    groups: dict[str, tuple[tuple[int, int], list[str]]] = {}
    for name, leaf in sorted(leaves.items()):  # JAX sorts dicts, too
        if name.endswith("kernel"):
            shape = (math.prod(leaf.shape[:-1]), leaf.shape[-1])
            groups.setdefault(f"{STACK}{shape[0]} {shape[1]}", (shape, []))[1].append(name)
    return groups


def _matrices(params: Leaves) -> dict[str, MuonDimensionNumbers | None]:
    """The stacked kernels are matrices: their last axis is the output, the one before the input."""
    return {name: MuonDimensionNumbers(1, 2) if name.startswith(STACK) else None for name in params}

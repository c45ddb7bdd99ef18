"""Builds the optimizer that a recipe describes, over flat parameters."""

from typing import Any

import optax
from optax.contrib import MuonDimensionNumbers, muon

from reground_jax.storage.facts import GATES
from reground_jax.training.recipe import Recipe
from reground_jax.training.state import Leaves


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Clips, applies AdamW or Muon, then scales the gates' updates. Parameters by flat name."""
    rates = learning_rates(recipe)
    if recipe.optimizer == "muon":
        step = muon(
            rates,
            weight_decay=recipe.weight_decay,
            adam_b2=recipe.beta2,
            muon_weight_dimension_numbers=_matrices,  # type: ignore[arg-type]
            consistent_rms=0.2,
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


def _matrices(params: Leaves) -> dict[str, MuonDimensionNumbers | None]:
    """Treats kernels as matrices: the last axis is the output, all others are the input."""
    return {
        name: MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)
        if name.endswith("kernel")
        else None
        for name, leaf in params.items()
    }

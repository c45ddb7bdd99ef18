"""The optimizer that a recipe stands for, over flat parameters."""

from typing import Any

import optax
from optax.contrib import MuonDimensionNumbers, muon

from reground_jax.storage.facts import GATES
from reground_jax.training.recipe import Recipe
from reground_jax.training.state import Leaves


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Clips, then applies AdamW or Muon, then the gates' own rate. Parameters by flat name."""
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
        """A gate is one number that moves by a learning rate per step: short runs need more."""
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
    """Warm-up from 0, and then as `recipe.decay` says."""
    warm = optax.linear_schedule(0.0, recipe.learning_rate, max(recipe.warmup_steps, 1))
    after = optax.constant_schedule(recipe.learning_rate)
    if recipe.decay == "cosine":
        left = max(recipe.num_steps - recipe.warmup_steps, 1)
        after = optax.cosine_decay_schedule(recipe.learning_rate, left)
    return optax.join_schedules([warm, after], [recipe.warmup_steps])


def _kernels(params: Leaves) -> dict[str, bool]:
    return {name: name.endswith("kernel") for name in params}


def _matrices(params: Leaves) -> dict[str, MuonDimensionNumbers | None]:
    """Kernels as matrices: the last axis is the output, a convolution's rest the input."""
    return {
        name: MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)
        if name.endswith("kernel")
        else None
        for name, leaf in params.items()
    }

"""The loop of updates inside a sampling step.

Updates come before a step's first evaluation and read only the conditional branch. Samples do not
affect each other: their losses are summed, and a finished sample is masked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reground_jax.sampling.attention_guidance.maps import Maps
from reground_jax.sampling.attention_guidance.steps import Steps


@dataclass(frozen=True)
class Phase:
    """Updates of one loss, as long as a sample is not done.

    loss       (maps, targets, step) -> (loss, measure), per sample
    done       (loss, measure, step) -> whether a sample needs no further update in this step
    most       field of `Steps`: updates of a step at most
    ask_first  a sample may be done before its first update
    latched    a sample that is done stays so at all later steps
    """

    loss: Callable[[Maps, Any, Steps], tuple[Array, Array]]
    done: Callable[[Array, Array, Steps], Array]
    most: str = "most"
    ask_first: bool = False
    latched: bool = False


def updated(
    phase: Phase,
    maps_at: Callable[[Array], Maps],
    x: Float[Array, "B H W C"],
    latched: Float[Array, "B"] | None,
    targets: Any,
    some: Bool[Array, "B"],
    step: Steps,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B"] | None]:
    """x after the updates of a phase, and each sample's last loss, if the phase reads it later.

    maps_at: the maps at x. some: whether a sample has anything to guide.
    """
    most = getattr(step, phase.most)
    active = some
    if phase.latched:
        assert latched is not None
        active &= ~phase.done(latched, latched, step)

    def loss(x: Array) -> tuple[Array, tuple[Array, Array]]:
        losses, measure = phase.loss(maps_at(x), targets, step)
        return losses.sum(), (losses, measure)  # a sample's maps depend on its own latents only

    def update(carry):
        x, latched, active, count = carry
        (_, (losses, measure)), gradient = jax.value_and_grad(loss, has_aux=True)(x)
        done = phase.done(losses, measure, step)
        moving = active & ~(done & (count == 0)) if phase.ask_first else active
        x = jnp.where(moving[:, None, None, None], x - step.size * gradient, x)
        if phase.latched:
            latched = jnp.where(active, losses, latched)
        return x, latched, active & ~done, count + 1

    def going_on(carry) -> Array:
        _, _, active, count = carry
        return (count < most) & active.any()

    x, latched, _, _ = jax.lax.while_loop(going_on, update, (x, latched, active, jnp.int32(0)))
    return x, latched

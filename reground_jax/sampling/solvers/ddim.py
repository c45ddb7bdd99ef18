"""DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16), as in diffusers' DDIMScheduler."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from reground_jax.config import NoiseSchedule
from reground_jax.sampling.schedule import alphas_cumprod, given, spaced_timesteps
from reground_jax.sampling.solvers.plan import (
    Plan,
    Solver,
    State,
    add_noise,
    epsilon_weights,
    init,
    make_plan,
    x0_weights,
)


def rows(schedule: NoiseSchedule, num_steps: int, *, eta: float = 0.0) -> Plan:
    """num_steps rows. eta from 0 (deterministic) to 1 (as random as DDPM), else ValueError.

    Defaults for fields not in the schedule: leading, offset 0, final alpha 1, x_0 clipped to -1..1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}: it must be from 0 (no noise) to 1 (as much as DDPM)")
    timesteps = spaced_timesteps(
        num_steps,
        schedule.num_train_steps,
        spacing=given(schedule.timestep_spacing, "leading"),
        offset=given(schedule.steps_offset, 0),
    )
    timesteps = timesteps.round().astype(int)
    left = alphas_cumprod(schedule)
    final = 1.0 if given(schedule.set_alpha_to_one, True) else left[0]
    end = timesteps - schedule.num_train_steps // num_steps
    now, after = left[timesteps], np.where(end >= 0, left[end], final)

    deviation = eta * np.sqrt((1 - after) / (1 - now) * (1 - now / after))
    clip = given(schedule.clip_sample_range, 1.0) if given(schedule.clip_sample, True) else np.inf
    alpha, sigma = np.sqrt(now), np.sqrt(1 - now)
    x0_of_x, x0_of_output = x0_weights(schedule, alpha, sigma)
    epsilon_of_x, epsilon_of_output = epsilon_weights(schedule, alpha, sigma)
    return make_plan(
        timesteps=timesteps,
        alpha=alpha,
        sigma=sigma,
        fresh=deviation,
        coefficients={
            "x0_of_x": x0_of_x,
            "x0_of_output": x0_of_output,
            "epsilon_of_x": epsilon_of_x,
            "epsilon_of_output": epsilon_of_output,
            "clip": np.full(num_steps, clip),
            "of_x0": np.sqrt(after),
            # With eta = 1, this is 0 at the last step, where rounding may make it negative.
            "of_epsilon": np.sqrt(np.maximum(1 - after - deviation**2, 0)),
        },
    )


def update(
    state: State,
    output: Float[Array, "B H W C"],
    row: Plan,
    noise: Float32[Array, "B H W C"] | None = None,
) -> State:
    """The state after one step. Unit normal `noise` is required if the plan's eta is above 0."""
    c = row.coefficients
    x0 = c["x0_of_x"] * state.x + c["x0_of_output"] * output
    epsilon = c["epsilon_of_x"] * state.x + c["epsilon_of_output"] * output
    x = c["of_x0"] * jnp.clip(x0, -c["clip"], c["clip"]) + c["of_epsilon"] * epsilon
    return State(x) if noise is None else add_noise(State(x), row, noise)


SOLVER = Solver(rows=rows, init=init, update=update, takes_eta=True)

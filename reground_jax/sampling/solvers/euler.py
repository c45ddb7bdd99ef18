"""Euler's method on dx/dsigma = epsilon (Karras et al. 2022, arXiv 2206.00364, eq. 1).

As in diffusers' EulerDiscreteScheduler with its defaults. The state is x_0 + sigma * noise, so it
starts large, and the U-Net sees it scaled to variance 1. `euler_ancestral` goes down to the
deviation of DDPM's posterior (Ho et al. 2020, arXiv 2006.11239, eq. 7), and adds noise.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from reground_jax.config import NoiseSchedule
from reground_jax.sampling.schedule import given, noise_ratios, spaced_timesteps
from reground_jax.sampling.solvers.plan import Plan, Solver, State, epsilon_weights, init, make_plan


def rows(schedule: NoiseSchedule, num_steps: int, *, ancestral: bool = False) -> Plan:
    """num_steps rows; time steps may be fractional.

    Defaults for fields not in the schedule: linspace, offset 0. clip_sample and final alpha are
    not used.
    """
    spacing = given(schedule.timestep_spacing, "linspace")
    timesteps = spaced_timesteps(
        num_steps,
        schedule.num_train_steps,
        spacing=spacing,
        offset=given(schedule.steps_offset, 0),
    )
    ratios = noise_ratios(schedule)
    sigma = np.interp(timesteps, np.arange(len(ratios)), ratios)
    sigma_next = np.append(sigma[1:], 0.0)
    down = sigma_next**2 / sigma if ancestral else sigma_next
    scale = 1 / np.sqrt(sigma**2 + 1)
    # v is defined on the scaled state, whose alpha and sigma are scale and sigma * scale.
    of_scaled_x, of_output = epsilon_weights(schedule, scale, sigma * scale)
    return make_plan(
        timesteps=timesteps,
        alpha=np.ones(num_steps),
        sigma=sigma,
        fresh=np.sqrt(sigma_next**2 - down**2),
        input_scale=scale,
        initial_scale=np.sqrt(sigma[0] ** 2 + 1) if spacing == "leading" else sigma[0],
        coefficients={
            # One product each: under zero terminal SNR, sigma is 4096, and x' much smaller.
            "of_x": 1 + (down - sigma) * of_scaled_x * scale,
            "of_output": (down - sigma) * of_output,
        },
    )


def update(state: State, output: Float[Array, "B H W C"], row: Plan, noise: Any = None) -> State:
    """The state after one step. `noise` is ignored."""
    c = row.coefficients
    return State(x=c["of_x"] * state.x + c["of_output"] * output)


SOLVER = Solver(rows=rows, init=init, update=update)

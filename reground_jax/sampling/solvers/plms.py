"""PLMS as in the original latent-diffusion and GLIGEN code: the paper's solver.

Exactly num_steps steps; the first one evaluates the U-Net at its own time step and at the next
one. The history holds each step's (guided) epsilon, never the mean of the first step.
"""

import numpy as np

from reground_jax.config import NoiseSchedule
from reground_jax.sampling.schedule import alphas_cumprod, given, spaced_timesteps
from reground_jax.sampling.solvers.adams_bashforth import (
    evaluation_steps,
    init,
    multistep_coefficients,
    update,
)
from reground_jax.sampling.solvers.plan import (
    Plan,
    Solver,
    ddim_transfer,
    epsilon_weights,
    make_plan,
)


def rows(schedule: NoiseSchedule, num_steps: int) -> Plan:
    """num_steps + 1 rows.

    Defaults for fields not in the schedule, as in the original: leading, offset 1, final alpha
    alphas_cumprod[0].
    """
    left = alphas_cumprod(schedule)
    timesteps = spaced_timesteps(
        num_steps,
        schedule.num_train_steps,
        spacing=given(schedule.timestep_spacing, "leading"),
        offset=given(schedule.steps_offset, 1),
    )
    timesteps = timesteps.round().astype(int)
    final = 1.0 if given(schedule.set_alpha_to_one, False) else left[0]
    a, b = ddim_transfer(left[timesteps], np.append(left[timesteps[1:]], final))

    step = evaluation_steps(num_steps)
    evaluated_at = timesteps[step]
    evaluated_at[1] = timesteps[min(1, num_steps - 1)]
    alpha, sigma = np.sqrt(left[evaluated_at]), np.sqrt(1 - left[evaluated_at])
    of_x, of_output = epsilon_weights(schedule, alpha, sigma)
    return make_plan(
        timesteps=evaluated_at,
        step=step,
        alpha=alpha,
        sigma=sigma,
        coefficients={
            "epsilon_of_x": of_x,
            "epsilon_of_output": of_output,
            **multistep_coefficients(step, a[step], b[step]),
        },
    )


SOLVER = Solver(rows=rows, init=init, update=update)

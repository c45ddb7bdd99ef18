"""PNDM as in diffusers' PNDMScheduler with skip_prk_steps, quirks included.

Nearly PLMS. The differences: a step goes from t to t - num_train_steps // num_steps, whatever the
spacing; the history holds the raw U-Net output, and v is converted to epsilon after the weighted
mean; a one-step run evaluates once.
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
    """num_steps + 1 rows (1 for one step). ValueError unless skip_prk_steps is True.

    Defaults for fields not in the schedule: leading, offset 0, final alpha alphas_cumprod[0].
    """
    if not given(schedule.skip_prk_steps, False):
        raise ValueError(
            "the checkpoint's scheduler needs Runge-Kutta warm-up steps (skip_prk_steps is not "
            "true), which pndm does not support: use solver='plms' or another one"
        )
    timesteps = spaced_timesteps(
        num_steps,
        schedule.num_train_steps,
        spacing=given(schedule.timestep_spacing, "leading"),
        offset=given(schedule.steps_offset, 0),
    )
    timesteps = timesteps.round().astype(int)
    step = evaluation_steps(num_steps)[: num_steps + 1 if num_steps > 1 else 1]
    evaluated_at = timesteps[step]
    if num_steps > 1:
        evaluated_at[1] = timesteps[1]

    stride = schedule.num_train_steps // num_steps
    start = evaluated_at.copy()
    start[1:2] += stride  # the second evaluation repeats the first step, from t1 + stride to t1
    end = start - stride
    left = alphas_cumprod(schedule)
    final = 1.0 if given(schedule.set_alpha_to_one, False) else left[0]
    now, after = left[start], np.where(end >= 0, left[end], final)

    a, b = ddim_transfer(now, after)
    of_x, of_output = epsilon_weights(schedule, np.sqrt(now), np.sqrt(1 - now))
    return make_plan(
        timesteps=evaluated_at,
        step=step,
        alpha=np.sqrt(left[evaluated_at]),
        sigma=np.sqrt(1 - left[evaluated_at]),
        coefficients={
            "epsilon_of_x": np.zeros_like(a),
            "epsilon_of_output": np.ones_like(a),
            **multistep_coefficients(step, a + b * of_x, b * of_output),
        },
    )


SOLVER = Solver(rows=rows, init=init, update=update)

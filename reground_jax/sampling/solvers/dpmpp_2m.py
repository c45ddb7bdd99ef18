"""DPM-Solver++ (2M): Lu et al. 2022 (arXiv 2211.01095), second-order multistep, midpoint form.

As in diffusers' DPMSolverMultistepScheduler with its defaults: first order in the first step (no
history) and in the last (which ends at noise 0). `dpmpp_2m_karras` spaces the noise levels as in
Karras et al. 2022 (arXiv 2206.00364, eq. 5) and gives the U-Net the nearest time steps.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from reground_jax.config import NoiseSchedule
from reground_jax.sampling.schedule import alphas_cumprod, given, spaced_timesteps
from reground_jax.sampling.solvers.plan import Plan, Solver, State, make_plan, x0_weights

RHO = 7.0  # Karras et al.'s choice


def rows(schedule: NoiseSchedule, num_steps: int, *, karras: bool = False) -> Plan:
    """num_steps rows. ValueError if num_steps = num_train_steps, except with trailing spacing.

    Defaults for fields not in the schedule: linspace, offset 0. clip_sample and final alpha are
    not used.
    """
    left = alphas_cumprod(schedule)
    all_ratios = np.sqrt((1 - left) / left)  # noise over image, increasing with time
    spacing = given(schedule.timestep_spacing, "linspace")
    timesteps = spaced_timesteps(
        num_steps,
        schedule.num_train_steps,
        spacing=spacing,
        offset=given(schedule.steps_offset, 0),
        drop_last=spacing != "trailing",
    ).round()
    ratios = all_ratios[timesteps.astype(int)]
    if karras:
        ends = all_ratios[-1] ** (1 / RHO), all_ratios[0] ** (1 / RHO)
        ratios = np.linspace(*ends, num_steps) ** RHO
        timesteps = np.interp(np.log(ratios), np.log(all_ratios), np.arange(len(left))).round()

    alpha = 1 / np.sqrt(ratios**2 + 1)
    x0_of_x, x0_of_output = x0_weights(schedule, alpha, ratios * alpha)
    return make_plan(
        timesteps=timesteps,
        alpha=alpha,
        sigma=ratios * alpha,
        coefficients={
            "x0_of_x": x0_of_x,
            "x0_of_output": x0_of_output,
            **second_order_coefficients(alpha, ratios * alpha),
        },
    )


def second_order_coefficients(
    alpha: Float64[np.ndarray, "M"], sigma: Float64[np.ndarray, "M"]
) -> dict[str, np.ndarray]:
    """x' = of_x * x + of_x0 * x_0 + of_past * (x_0 of the previous step), for each step.

    With l = log(alpha / sigma) and h = l' - l: x' = sigma'/sigma x + alpha' (1 - exp(-h)) D, where
    D = x_0 + h / (2 h_previous) (x_0 - previous x_0).
    """
    alpha_next, sigma_next = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    gain = alpha_next - alpha * sigma_next / sigma  # alpha' (1 - exp(-h)), finite at sigma' = 0
    steps = np.diff(np.log(alpha / sigma))  # h of all steps but the last
    extrapolation = np.zeros_like(alpha)
    extrapolation[1:-1] = steps[1:] / (2 * steps[:-1])
    return {
        "of_x": sigma_next / sigma,
        "of_x0": gain * (1 + extrapolation),
        "of_past": -gain * extrapolation,
    }


def init(x_T: Float[Array, "B H W C"], plan: Plan) -> State:
    """The state at unit normal `x_T`, with an empty history (zeros that the first row ignores)."""
    x = (x_T * plan.initial_scale).astype(jnp.float32)
    return State(x=x, history=(jnp.zeros_like(x),))


def update(state: State, output: Float[Array, "B H W C"], row: Plan, noise: Any = None) -> State:
    """The state after one step. `noise` is ignored."""
    c = row.coefficients
    (past,) = state.history
    x0 = c["x0_of_x"] * state.x + c["x0_of_output"] * output
    return State(x=c["of_x"] * state.x + c["of_x0"] * x0 + c["of_past"] * past, history=(x0,))


SOLVER = Solver(rows=rows, init=init, update=update)

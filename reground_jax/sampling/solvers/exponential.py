"""What DPM-Solver++ and UniPC share: multistep integrators of x_0, exact in x.

With l = log(alpha / sigma) and h = l' - l, a step from (alpha, sigma) to (alpha', sigma') is

    x' = sigma'/sigma x + alpha' (1 - exp(-h)) D,   D = x_0 + h/(2 h_previous) (x_0 - previous x_0)

(Lu et al. 2022, arXiv 2211.01095, algorithm 2). The first step has no history, and the last ends
at noise 0, where h is infinite: in both, D = x_0. For the SDE, with fresh noise, it is

    x' = sigma'/sigma exp(-h) x + alpha' (1 - exp(-2h)) D + sigma' sqrt(1 - exp(-2h)) noise.

The state is alpha * x_0 + sigma * epsilon with alpha^2 + sigma^2 = 1.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from reground_jax.config import NoiseSchedule
from reground_jax.sampling.schedule import given, noise_ratios, spaced_timesteps
from reground_jax.sampling.solvers.plan import Plan, State, make_plan, x0_weights

RHO = 7.0  # Karras et al.'s choice


class Levels(NamedTuple):
    """Where the U-Net is evaluated."""

    timesteps: Float64[np.ndarray, "M"]
    alpha: Float64[np.ndarray, "M"]
    sigma: Float64[np.ndarray, "M"]


def levels(schedule: NoiseSchedule, num_steps: int, *, karras: bool = False) -> Levels:
    """`num_steps` levels. ValueError for num_train_steps of them, except with trailing spacing.

    Defaults for fields not in the schedule: linspace, offset 0. `karras`: noise levels as in Karras
    et al. 2022 (arXiv 2206.00364, eq. 5), at the nearest time steps.
    """
    all_ratios = noise_ratios(schedule)
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
        known = np.arange(len(all_ratios))
        timesteps = np.interp(np.log(ratios), np.log(all_ratios), known).round()
    alpha = 1 / np.sqrt(ratios**2 + 1)
    return Levels(timesteps, alpha, ratios * alpha)


class Weights(NamedTuple):
    """x' = of_x * x + of_x0[0] * x_0 + of_x0[1] * (x_0 one step ago) + ... + fresh * noise."""

    of_x: Float64[np.ndarray, "M"]
    of_x0: Float64[np.ndarray, "M k"]
    fresh: Float64[np.ndarray, "M"]


def log_steps(at: Levels) -> Float64[np.ndarray, "N"]:
    """h of all steps but the last, where it is infinite."""
    return np.diff(np.log(at.alpha / at.sigma))


def second_order(at: Levels, *, sde: bool = False) -> Weights:
    """The steps from each level to the next, and from the last to noise 0."""
    alpha_next, sigma_next = np.append(at.alpha[1:], 1.0), np.append(at.sigma[1:], 0.0)
    kept = sigma_next  # what a step leaves of epsilon
    if sde:
        kept = sigma_next * (at.alpha * sigma_next) / (at.sigma * alpha_next)  # sigma' exp(-h)
    gain = alpha_next - at.alpha * kept / at.sigma  # alpha' (1 - exp(-h)), finite at sigma' = 0
    steps = log_steps(at)
    extrapolation = np.zeros_like(gain)
    extrapolation[1:-1] = steps[1:] / (2 * steps[:-1])
    return Weights(
        of_x=kept / at.sigma,
        of_x0=np.stack([gain * (1 + extrapolation), -gain * extrapolation], axis=1),
        fresh=np.sqrt(sigma_next**2 - kept**2),
    )


def x0_plan(schedule: NoiseSchedule, at: Levels, weights: Weights) -> Plan:
    """One row per level."""
    x0_of_x, x0_of_output = x0_weights(schedule, at.alpha, at.sigma)
    return make_plan(
        timesteps=at.timesteps,
        alpha=at.alpha,
        sigma=at.sigma,
        fresh=weights.fresh,
        coefficients={
            "x0_of_x": x0_of_x,
            "x0_of_output": x0_of_output,
            "of_x": weights.of_x,
            "of_x0": weights.of_x0,
        },
    )


def init(x_T: Float[Array, "B H W C"], plan: Plan) -> State:
    """The state at unit normal `x_T`, with an empty history (zeros that early rows ignore)."""
    x = (x_T * plan.initial_scale).astype(jnp.float32)
    earlier = plan.coefficients["of_x0"].shape[-1] - 1
    return State(x=x, history=(jnp.zeros_like(x),) * earlier)


def update(state: State, output: Float[Array, "B H W C"], row: Plan, noise: Any = None) -> State:
    """The state after one step, without fresh noise. `noise` is ignored."""
    c = row.coefficients
    recent = (c["x0_of_x"] * state.x + c["x0_of_output"] * output, *state.history)
    x = c["of_x"] * state.x
    for k, x0 in enumerate(recent):
        x = x + c["of_x0"][k] * x0
    return State(x=x, history=recent[:-1])

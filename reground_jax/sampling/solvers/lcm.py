"""Multistep sampling of latent consistency models (Luo et al. 2023, arXiv 2310.04378, algorithm 3).

As in diffusers' LCMScheduler: for models distilled to draw in a few steps, such as Stable Diffusion
with an LCM-LoRA. Each step goes all the way to x_0 and adds fresh noise for the next one.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from reground_jax.config import NoiseSchedule
from reground_jax.sampling.schedule import alphas_cumprod, given
from reground_jax.sampling.solvers.plan import (
    Plan,
    Solver,
    State,
    add_noise,
    init,
    make_plan,
    x0_weights,
)

SIGMA_DATA = 0.5  # of consistency models (Song et al. 2023, arXiv 2303.01469, appendix C)


def rows(schedule: NoiseSchedule, num_steps: int) -> Plan:
    """num_steps rows, at time steps of the model's distillation. ValueError if it had fewer.

    Defaults for fields not in the schedule: distilled at 50 time steps, timestep_scaling 10, x_0
    not clipped. Spacing, offset and final alpha are not used.
    """
    timesteps = distilled_timesteps(
        num_steps, given(schedule.original_inference_steps, 50), schedule.num_train_steps
    )
    left = alphas_cumprod(schedule)[timesteps]
    alpha, sigma = np.sqrt(left), np.sqrt(1 - left)
    x0_of_x, x0_of_output = x0_weights(schedule, alpha, sigma)
    clipped = given(schedule.clip_sample, False)
    clip = given(schedule.clip_sample_range, 1.0) if clipped else np.inf
    # x_0 = c_skip x + c_out x_0 is exact at time 0 (appendix C of the same).
    scaled = timesteps * given(schedule.timestep_scaling, 10.0)
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / np.sqrt(scaled**2 + SIGMA_DATA**2)
    alpha_next = np.append(alpha[1:], 1.0)
    return make_plan(
        timesteps=timesteps,
        alpha=alpha,
        sigma=sigma,
        fresh=np.append(sigma[1:], 0.0),
        coefficients={
            "x0_of_x": x0_of_x,
            "x0_of_output": x0_of_output,
            "clip": np.full(num_steps, clip),
            "of_x": alpha_next * c_skip,
            "of_x0": alpha_next * c_out,
        },
    )


def distilled_timesteps(num_steps: int, distilled: int, num_train_steps: int) -> np.ndarray:
    """`num_steps` of the time steps that the model was distilled at, descending from the noisiest.

    Raises ValueError if there are not as many.
    """
    if not 1 <= num_steps <= distilled:
        raise ValueError(
            f"num_steps is {num_steps}: it must be from 1 to {distilled} with solver 'lcm', whose "
            f"models are distilled at {distilled} time steps (original_inference_steps); 4 to 8 "
            "are usual"
        )
    known = np.arange(distilled, 0, -1) * (num_train_steps // distilled) - 1
    return known[np.floor(np.linspace(0, distilled, num_steps, endpoint=False)).astype(int)]


def update(
    state: State, output: Float[Array, "B H W C"], row: Plan, noise: Float32[Array, "B H W C"]
) -> State:
    """The state after one step; the last row adds no noise."""
    c = row.coefficients
    x0 = c["x0_of_x"] * state.x + c["x0_of_output"] * output
    x = c["of_x"] * state.x + c["of_x0"] * jnp.clip(x0, -c["clip"], c["clip"])
    return add_noise(State(x), row, noise)


SOLVER = Solver(rows=rows, init=init, update=update, adds_noise=True)

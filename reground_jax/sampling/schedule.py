"""The forward process and its time steps, on the host in float64.

x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) noise, with the betas of latent
diffusion (Rombach et al. 2022). The three spacings are those of Lin et al. 2023 (arXiv 2305.08891,
table 2), rounded as diffusers rounds them; zero terminal SNR is their algorithm 1.
"""

from typing import TypeVar

import numpy as np
from jaxtyping import Float64

from reground_jax.config import NoiseSchedule

T = TypeVar("T")

# What diffusers leaves of the image's variance at a time step that has none, for solvers that
# divide by it.
LEAST_LEFT = 2.0**-24


def given(value: T | None, default: T) -> T:
    """The checkpoint's value, or the solver's default if it has none."""
    return default if value is None else value


def alphas_cumprod(schedule: NoiseSchedule) -> Float64[np.ndarray, "K"]:
    """Fraction of the image's variance left at each of the K training time steps, decreasing.

    The last is 0 under `rescale_betas_zero_snr`, and above 0 otherwise. Raises ValueError for a
    beta schedule other than "linear" and "scaled_linear".
    """
    start, end, count = schedule.beta_start, schedule.beta_end, schedule.num_train_steps
    if schedule.beta_schedule == "linear":
        betas = np.linspace(start, end, count)
    elif schedule.beta_schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, count) ** 2
    else:
        raise ValueError(
            f"beta_schedule is {schedule.beta_schedule!r}: only 'linear' and 'scaled_linear' are "
            "supported; convert a checkpoint that uses one of them"
        )
    left = np.cumprod(1.0 - betas)
    if schedule.rescale_betas_zero_snr:
        signal = np.sqrt(left)
        left = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    return left


def noise_ratios(schedule: NoiseSchedule) -> Float64[np.ndarray, "K"]:
    """Noise over image, sqrt((1 - left) / left), at each training time step; all finite.

    As in diffusers, the last is 4096 under `rescale_betas_zero_snr`.
    """
    left = alphas_cumprod(schedule)
    left[-1] = left[-1] or LEAST_LEFT
    return np.sqrt((1 - left) / left)


def spaced_timesteps(
    num_steps: int, num_train_steps: int, *, spacing: str, offset: int, drop_last: bool = False
) -> Float64[np.ndarray, "n"]:
    """Exactly `num_steps` time steps, descending; only "linspace" may give fractions.

    `drop_last` places one more and drops the last, which DPM-Solver++ treats as the finished
    image. Raises ValueError if the steps do not fit into `num_train_steps`.
    """
    placed = num_steps + drop_last
    if not (num_steps >= 1 and placed <= num_train_steps):
        raise ValueError(
            f"num_steps is {num_steps}: it must be from 1 to {num_train_steps - drop_last}, "
            "because the schedule has no more time steps"
        )
    if spacing == "linspace":
        timesteps = np.linspace(0, num_train_steps - 1, placed)[::-1]
    elif spacing == "leading":
        timesteps = (np.arange(placed) * (num_train_steps // placed) + float(offset))[::-1]
    elif spacing == "trailing":
        # arange may yield one entry too many (61 steps), hence the slice.
        timesteps = np.arange(num_train_steps, 0, -num_train_steps / placed)[:placed].round() - 1
    else:
        raise ValueError(
            f"timestep_spacing is {spacing!r}: it must be 'leading', 'linspace' or 'trailing'"
        )
    if timesteps[0] >= num_train_steps:
        raise ValueError(
            f"{num_steps} steps with steps_offset {offset} start at time step {timesteps[0]:g}, "
            f"but the last one is {num_train_steps - 1}: use fewer steps"
        )
    return timesteps[:num_steps]

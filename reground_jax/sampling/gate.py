"""Scheduled sampling of the fusers: one gate per denoising step (GLIGEN, section 3.2).

gamma is the fraction of the steps, from the first one on, with grounding on (ReGround's gamma,
GLIGEN's tau). Steps are counted in Python floats: in float32, int(0.53 * 100) is 52.
"""

import numpy as np
from jaxtyping import Float32

from reground_jax.settings import checked_gamma

Gamma = float | int | tuple[float | int, ...]  # one number or three


def gate_table(gamma: Gamma, num_steps: int) -> Float32[np.ndarray, "n"]:
    """The gate at each of `num_steps` steps, in 0..1, never increasing.

    A number is the fraction of steps with gate 1; the rest have 0. Three numbers (on, decay, off)
    are GLIGEN's schedule: s0 = int(on*n) gates of 1, s1 = int(decay*n) gates (s1-1-i)/s1, then 0.
    Raises ValueError for a fraction outside 0..1, or three that do not add up to 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}: it must be at least 1")
    parts = checked_gamma(gamma)
    on, decay, _ = parts if isinstance(parts, tuple) else (parts, 0.0, 0.0)
    num_on, num_decay = int(on * num_steps), int(decay * num_steps)
    table = np.zeros(num_steps, np.float32)
    table[:num_on] = 1.0
    table[num_on : num_on + num_decay] = np.arange(num_decay)[::-1] / max(num_decay, 1)
    return table


def grounded_steps(table: Float32[np.ndarray, "n"]) -> int:
    """How many steps need the fusers: one more than the index of the last gate above 0."""
    nonzero = np.flatnonzero(table)
    return int(nonzero[-1]) + 1 if nonzero.size else 0

"""Scheduled sampling of the fusers: one gate per denoising step (GLIGEN, section 3.2).

gamma is the share of the first steps in which grounding is on (ReGround's gamma, GLIGEN's tau).
Counts are taken in Python floats: float32 gives other ones, such as 52 for int(0.53 * 100).
"""

import math

import numpy as np
from jaxtyping import Float32

Gamma = float | int | tuple[float | int, ...]  # one part or three


def gate_table(gamma: Gamma, num_steps: int) -> Float32[np.ndarray, "n"]:
    """Gate of each of the `num_steps` steps, 0..1, never increasing.

    A number is the share of steps with gate 1; the rest have 0. Three numbers (on, decay, off) are
    GLIGEN's schedule: s0 = int(on*n) gates of 1, s1 = int(decay*n) gates (s1-1-i)/s1, then 0.
    Raises ValueError for a share outside 0..1, or three that do not add up to 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}: it must be at least 1")
    on, decay = _on_and_decay(gamma)
    num_on, num_decay = int(on * num_steps), int(decay * num_steps)
    table = np.zeros(num_steps, np.float32)
    table[:num_on] = 1.0
    table[num_on : num_on + num_decay] = np.arange(num_decay)[::-1] / max(num_decay, 1)
    return table


def grounded_steps(table: Float32[np.ndarray, "n"]) -> int:
    """How many first steps need the fusers: one more than the index of the last gate above 0."""
    nonzero = np.flatnonzero(table)
    return int(nonzero[-1]) + 1 if nonzero.size else 0


def _on_and_decay(gamma: Gamma) -> tuple[float, float]:
    parts = gamma if isinstance(gamma, tuple) else (gamma,)
    # `not (0 <= p <= 1)` also catches NaN.
    if len(parts) not in (1, 3) or not all(0 <= part <= 1 for part in parts):
        raise ValueError(
            f"gamma is {gamma}: give one number from 0 to 1 (the share of steps with grounding), "
            "or three such numbers (on, decay, off)"
        )
    if len(parts) == 1:
        return float(parts[0]), 0.0
    # A tolerance, because .7 + .2 + .1 is not 1 in floating point.
    if not math.isclose(sum(parts), 1.0, abs_tol=1e-6, rel_tol=0):
        raise ValueError(
            f"gamma (on, decay, off) is {gamma}, which adds up to {sum(parts):g}: "
            "the three must add up to 1"
        )
    return float(parts[0]), float(parts[1])

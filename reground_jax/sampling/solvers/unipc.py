"""UniPC of order 2 (Zhao et al. 2023, arXiv 2302.04867) with B(h) = exp(h) - 1, for x_0.

As in diffusers' UniPCMultistepScheduler with its defaults. Its predictor is DPM-Solver++ (2M). Once
the U-Net has seen where a step led, the corrector (UniC, theorem 3.1) repeats that step with one
more x_0, at no further evaluation, and the next step starts from there.
"""

import numpy as np
from jaxtyping import Float64

from reground_jax.config import NoiseSchedule
from reground_jax.sampling.solvers.exponential import (
    Levels,
    init,
    levels,
    log_steps,
    second_order,
    update,
    x0_plan,
)
from reground_jax.sampling.solvers.plan import Plan, Solver


def rows(schedule: NoiseSchedule, num_steps: int) -> Plan:
    """num_steps rows; see `levels` for defaults and errors.

    clip_sample and final alpha are not used.
    """
    at = levels(schedule, num_steps)
    predictor = second_order(at)
    of_x0 = np.pad(predictor.of_x0, ((0, 0), (0, 1))) + predictor.of_x[:, None] * correction(at)
    return x0_plan(schedule, at, predictor._replace(of_x0=of_x0))


def correction(at: Levels) -> Float64[np.ndarray, "M 3"]:
    """What the corrector adds to x at each level: weights of its x_0 and of the last two.

    A step of size h is an average of x_0 over s = (l - l_0) / h from 0 to 1, of density exp(h s).
    The corrector takes that of the parabola through s = r (two steps ago), 0 and 1 (now); after the
    first step, diffusers takes the middle of the line through 0 and 1. What it adds is the
    difference to the predictor's step from the same x.
    """
    added = np.zeros((len(at.timesteps), 3))
    h = log_steps(at)  # h[i - 1] led to level i
    gain = -at.alpha[1:] * np.expm1(-h)
    added[1:2] = gain[:1, None] * [0.5, -0.5, 0]
    h, gain, r = h[1:], gain[1:], -h[:-1] / h[1:]
    mean = 1 / -np.expm1(-h) - 1 / h  # of s
    square = 1 / -np.expm1(-h) - 2 * mean / h  # of s^2
    past = (mean - square) / (1 - r)
    now, then = mean - past, (past - 0.5) / r  # 0.5 is the predictor's
    added[2:] = gain[:, None] * np.stack([now, -now - then, then], axis=1)
    return added


SOLVER = Solver(rows=rows, init=init, update=update)

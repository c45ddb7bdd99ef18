"""The linear multistep update behind PLMS and PNDM (Liu et al. 2022, arXiv 2202.09778).

x' = a * x + b * (weighted mean of this evaluation's epsilon and of up to three earlier ones), with
the weights of Adams-Bashforth. The first step has no history, so it evaluates twice and takes the
mean (improved Euler).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from reground_jax.sampling.solvers.plan import Plan, State

ADAMS_BASHFORTH = np.array(
    [
        [1, 0, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)  # row: order - 1; column: newest output first


def evaluation_steps(num_steps: int) -> np.ndarray:
    """Step of each evaluation: 0, 0, 1, 2 ... num_steps - 1."""
    return np.maximum(np.arange(num_steps + 1) - 1, 0)


def multistep_coefficients(
    step: np.ndarray, a: Float64[np.ndarray, "M"], b: Float64[np.ndarray, "M"]
) -> dict[str, np.ndarray]:
    """Coefficients of `update` from each evaluation's one-step transfer x' = a * x + b * output.

    The second evaluation of the first step starts over from x_T with the mean of both outputs:
    x = a1 * x_T + b1 * (e0 + e1) / 2. Since x_T = (x - b0 * e0) / a0, this is a correction of the
    current x, and the state need not carry x_T.
    """
    weights = b[:, None] * ADAMS_BASHFORTH[np.minimum(step, 3)]
    of_x = a.copy()
    push = np.ones_like(a)
    if len(step) > 1 and step[1] == 0:
        of_x[1] = a[1] / a[0]
        weights[1] = [b[1] / 2, b[1] / 2 - of_x[1] * b[0], 0, 0]
        push[1] = 0  # the history keeps only each step's first evaluation
    return {"of_x": of_x, "weights": weights, "push": push}


def init(x_T: Float[Array, "B H W C"], plan: Plan) -> State:
    """The state at unit normal `x_T`, with an empty history (zeros that no row reads)."""
    x = (x_T * plan.initial_scale).astype(jnp.float32)
    return State(x=x, history=(jnp.zeros_like(x),) * 3)


def update(state: State, output: Float[Array, "B H W C"], row: Plan, noise: Any = None) -> State:
    """The state after one evaluation. `noise` is ignored."""
    c = row.coefficients
    epsilon = c["epsilon_of_x"] * state.x + c["epsilon_of_output"] * output
    recent = (epsilon, *state.history)
    x = c["of_x"] * state.x
    for k, past in enumerate(recent):
        x = x + c["weights"][k] * past
    kept = tuple(
        jnp.where(c["push"] > 0, new, old) for new, old in zip(recent, state.history, strict=False)
    )
    return State(x=x, history=kept)

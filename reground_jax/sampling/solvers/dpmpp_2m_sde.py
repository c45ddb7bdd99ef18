"""SDE-DPM-Solver++ (2M) of Lu et al. 2022 (arXiv 2211.01095): dpmpp_2m with fresh noise.

As in diffusers' DPMSolverMultistepScheduler with algorithm_type "sde-dpmsolver++", midpoint form.
"""

from functools import partial

from jaxtyping import Array, Float, Float32

from reground_jax.sampling.solvers import exponential
from reground_jax.sampling.solvers.dpmpp_2m import rows
from reground_jax.sampling.solvers.plan import Plan, Solver, State, add_noise


def update(
    state: State, output: Float[Array, "B H W C"], row: Plan, noise: Float32[Array, "B H W C"]
) -> State:
    """The state after one step."""
    return add_noise(exponential.update(state, output, row), row, noise)


SOLVER = Solver(rows=partial(rows, sde=True), init=exponential.init, update=update, adds_noise=True)

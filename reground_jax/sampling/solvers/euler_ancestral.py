"""Euler's method with as much fresh noise as DDPM adds.

As in diffusers' EulerAncestralDiscreteScheduler. A step from sigma goes down to sigma'^2 / sigma by
Euler's method, and up to sigma' by noise.
"""

from functools import partial

from jaxtyping import Array, Float, Float32

from reground_jax.sampling.solvers import euler
from reground_jax.sampling.solvers.plan import Plan, Solver, State, add_noise, init


def update(
    state: State, output: Float[Array, "B H W C"], row: Plan, noise: Float32[Array, "B H W C"]
) -> State:
    """The state after one step."""
    return add_noise(euler.update(state, output, row), row, noise)


SOLVER = Solver(rows=partial(euler.rows, ancestral=True), init=init, update=update, adds_noise=True)

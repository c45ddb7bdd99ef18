"""DPM-Solver++ (2M) on the noise levels of Karras et al. 2022 (arXiv 2206.00364, eq. 5)."""

from functools import partial

from reground_jax.sampling.solvers.dpmpp_2m import rows
from reground_jax.sampling.solvers.exponential import init, update
from reground_jax.sampling.solvers.plan import Solver

SOLVER = Solver(rows=partial(rows, karras=True), init=init, update=update)

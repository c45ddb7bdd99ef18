"""Solvers by name, one short file each. `plan.py` says what a solver is."""

from reground_jax.sampling.solvers.ddim import DDIM
from reground_jax.sampling.solvers.dpmpp_2m import DPMPP_2M, DPMPP_2M_KARRAS
from reground_jax.sampling.solvers.euler import EULER
from reground_jax.sampling.solvers.plan import Plan, Solver, State
from reground_jax.sampling.solvers.plms import PLMS
from reground_jax.sampling.solvers.pndm import PNDM

SOLVERS: dict[str, Solver] = {
    "plms": PLMS,
    "pndm": PNDM,
    "ddim": DDIM,
    "dpmpp_2m": DPMPP_2M,
    "dpmpp_2m_karras": DPMPP_2M_KARRAS,
    "euler": EULER,
}

__all__ = ["SOLVERS", "Plan", "Solver", "State"]

"""Solvers by name: each of `settings.SOLVER_NAMES` is the `SOLVER` of the module of that name.

`plan.py` defines what a solver is.
"""

import importlib

from reground_jax.sampling.solvers.plan import Plan, Solver, State
from reground_jax.settings import SOLVER_NAMES

SOLVERS: dict[str, Solver] = {
    name: importlib.import_module(f"{__name__}.{name}").SOLVER for name in SOLVER_NAMES
}

__all__ = ["SOLVERS", "Plan", "Solver", "State"]

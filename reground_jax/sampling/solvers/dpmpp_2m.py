"""DPM-Solver++ (2M): Lu et al. 2022 (arXiv 2211.01095), second-order multistep, midpoint form.

As in diffusers' DPMSolverMultistepScheduler with its defaults. `exponential.py` has the formulas.
"""

from reground_jax.config import NoiseSchedule
from reground_jax.sampling.solvers.exponential import init, levels, second_order, update, x0_plan
from reground_jax.sampling.solvers.plan import Plan, Solver


def rows(
    schedule: NoiseSchedule, num_steps: int, *, karras: bool = False, sde: bool = False
) -> Plan:
    """num_steps rows; see `levels` for defaults and errors. `sde`: with fresh noise.

    clip_sample and final alpha are not used.
    """
    at = levels(schedule, num_steps, karras=karras)
    return x0_plan(schedule, at, second_order(at, sde=sde))


SOLVER = Solver(rows=rows, init=init, update=update)

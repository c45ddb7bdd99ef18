"""The parts of a sampling loop, to build a custom one.

    SOLVERS                        a Solver by name: plan, init, update
    Plan, State                    a row per evaluation of the U-Net; what a solver carries along
    gate_table, grounded_steps     gamma as one gate per step
    initial_noise, step_noise      one seed per image, whatever the batch
    guide                          classifier-free guidance over neighboring branches
    prepare, advance               what no step changes, and the compiled loop over the rest
    Inputs, Inpaint                what may change from call to call without compiling anything

README.md has a loop that is built of them.
"""

from typing import TYPE_CHECKING

from reground_jax.basics.lazy import exports

if TYPE_CHECKING:
    from reground_jax.sampling.gate import gate_table, grounded_steps
    from reground_jax.sampling.guidance import guide
    from reground_jax.sampling.loop import Inpaint, Inputs, advance, prepare
    from reground_jax.sampling.noise import initial_noise, step_noise
    from reground_jax.sampling.solvers import SOLVERS
    from reground_jax.sampling.solvers.plan import Plan, Solver, State

__all__ = [
    "SOLVERS",
    "Inpaint",
    "Inputs",
    "Plan",
    "Solver",
    "State",
    "advance",
    "gate_table",
    "grounded_steps",
    "guide",
    "initial_noise",
    "prepare",
    "step_noise",
]

__getattr__ = exports(
    __name__,
    {
        "SOLVERS": "solvers",
        "Inpaint": "loop",
        "Inputs": "loop",
        "Plan": "solvers.plan",
        "Solver": "solvers.plan",
        "State": "solvers.plan",
        "advance": "loop",
        "gate_table": "gate",
        "grounded_steps": "gate",
        "guide": "guidance",
        "initial_noise": "noise",
        "prepare": "loop",
        "step_noise": "noise",
    },
)

"""Building blocks for custom sampling loops.

    SOLVERS                        solvers by name: plan, init, update
    Plan, State                    one row per U-Net evaluation; what a solver carries between them
    gate_table, grounded_steps     gamma as one gate per step
    initial_noise, step_noise      noise from one seed per image, independent of the batch
    guide                          classifier-free guidance over adjacent branches
    prepare, advance               everything computed once per run; the compiled loop over steps
    Inputs, Inpaint                what may change between calls without recompiling

docs/sampling.md shows a loop built from them.
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

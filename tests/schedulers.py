"""What diffusers calls our solvers: the class of a scheduler and its options."""

import pytest

DIFFUSERS = {
    "plms": ("PNDMScheduler", {}),  # the same numbers for epsilon, leading spacing, 2 steps or more
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
}


def scheduler_of(solver: str) -> tuple[str, dict]:
    """The scheduler that a solver is compared with; a solver without one fails its tests."""
    if solver not in DIFFUSERS:
        pytest.fail(
            f"nothing says what solver {solver!r} is compared with: name diffusers' scheduler in "
            "DIFFUSERS of tests/schedulers.py; if diffusers has none, write the algorithm out in "
            "tests/test_solvers.py, as for plms"
        )
    return DIFFUSERS[solver]

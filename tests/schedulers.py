"""diffusers' schedulers: the class and options for each of our solvers, and scheduler files."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from unittest import mock

import numpy as np
import pytest
import torch

DIFFUSERS = {
    "plms": ("PNDMScheduler", {}),  # the same numbers for epsilon, leading spacing, 2 steps or more
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}

SD14 = {  # the scheduler file of CompVis/stable-diffusion-v1-4
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SILENT = {  # says nothing that a class has a default for, but what PNDM cannot run without
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "skip_prk_steps": True,
}
FILES = {
    "sd14": SD14,
    "sd14_v": {**SD14, "prediction_type": "v_prediction"},
    # as in stabilityai/stable-diffusion-2
    "sd2": {**SD14, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "trailing": {**SD14, "timestep_spacing": "trailing", "steps_offset": 0},
    "trailing_v": {**SD14, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    "linspace": {**SD14, "timestep_spacing": "linspace"},
    "linspace_v": {**SD14, "timestep_spacing": "linspace", "prediction_type": "v_prediction"},
    "leading": {**SD14, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
    "silent": SILENT,
    "silent_v_ddim": {**SILENT, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "final_alpha_one": {**SD14, "set_alpha_to_one": True},
    "clipped": {
        **SILENT,
        "_class_name": "DDIMScheduler",
        "clip_sample": True,
        "clip_sample_range": 2.0,  # not DDIM's default of 1
        "steps_offset": 1,
    },
    "linear_betas": {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "skip_prk_steps": True,
        "clip_sample": False,
    },
    "lcm": {  # far from its defaults, under which x_0 is scaled by 1 - 4e-6 and x weighs 7e-6
        **SILENT,
        "_class_name": "LCMScheduler",
        "clip_sample": True,
        "original_inference_steps": 60,
        "timestep_scaling": 0.01,
    },
}
# The last time step is pure noise, and the first one here.
ZERO_SNR = {
    **SD14,
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
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


@contextlib.contextmanager
def drawing(scheduler: object, noise: Iterable[np.ndarray]) -> Iterator[None]:
    """Within, each draw of diffusers' `scheduler` is the next of `noise`."""
    draws = iter(noise)
    module = sys.modules[type(scheduler).__module__]
    with mock.patch.object(
        module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(draws)), create=True
    ):
        yield

"""Our solvers and diffusers' schedulers, on one scheduler file and in place of a U-Net.

Which class and options each of ours is compared with, scheduler files, and a run of either side.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from reground_jax.config import NoiseSchedule
from reground_jax.sampling.solvers import SOLVERS, Plan

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


SHAPE = (2, 3, 5, 4)  # B, H, W, C: small, all different


def schedule_of(file: dict) -> NoiseSchedule:
    """A scheduler file as converted, for the fields used here."""
    fields = {f.name for f in dataclasses.fields(NoiseSchedule)}
    return NoiseSchedule(**{k: v for k, v in file.items() if k in fields})


def drawn(num_steps: int) -> np.ndarray:
    """Noise for each step of a solver that adds some."""
    return unit_noise(3, num_steps, *SHAPE)


def denoiser(x: np.ndarray, t: float) -> np.ndarray:
    """A stand-in for the U-Net: nonlinear in x, mixes channels and depends on t."""
    x = x.astype(np.float32)
    mixed = 0.8 * x + 0.3 * np.roll(x, 1, axis=-1)
    return np.tanh(mixed + t / 500 - 1) * np.float32(0.6 + 0.4 * t / 1000)


def unit_noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


update = jax.jit(lambda solver, *args: solver.update(*args), static_argnums=0)


def run_ours(
    name: str,
    schedule: NoiseSchedule,
    num_steps: int,
    x_T: np.ndarray,
    *,
    eta: float = 0.0,
    plan: Plan | None = None,
) -> np.ndarray:
    solver = SOLVERS[name]
    plan = plan or solver.plan(schedule, num_steps, eta=eta)
    noise = drawn(num_steps) if solver.stochastic(eta) else None
    state = solver.init(jnp.asarray(x_T), plan)
    for e in range(len(plan.timesteps)):
        row = plan.row(e)
        output = denoiser(np.asarray(state.x * row.input_scale), float(row.timesteps))
        step_noise = None if noise is None else noise[int(row.step)]
        state = update(solver, state, output, row, step_noise)
    return np.asarray(state.x)


def theirs_from(file: dict, name: str):
    """diffusers' scheduler for a solver name, from a file, through the class that it names."""
    kind, options = scheduler_of(name)
    of_file = getattr(diffusers, file["_class_name"]).from_config(file)
    return getattr(diffusers, kind).from_config(of_file.config, **options)


def run_theirs(
    name: str,
    file: dict,
    num_steps: int,
    x_T: np.ndarray,
    *,
    eta: float = 0.0,
) -> np.ndarray:
    scheduler = theirs_from(file, name)
    scheduler.set_timesteps(num_steps)
    options = {"eta": eta} if eta else {}
    # Schedulers work element by element, so they take NHWC as well as NCHW.
    x = torch.from_numpy(x_T) * scheduler.init_noise_sigma
    with drawing(scheduler, drawn(num_steps)):
        for t in scheduler.timesteps:
            output = torch.from_numpy(denoiser(scheduler.scale_model_input(x, t).numpy(), float(t)))
            x = scheduler.step(output, t, x, **options).prev_sample
    return x.numpy()


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert np.isfinite(theirs).all()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())

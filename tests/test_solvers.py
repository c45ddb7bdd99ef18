"""Every solver against code that is not ours: diffusers' schedulers, and PLMS as published."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.config import NoiseSchedule
from reground_jax.sampling import solvers
from reground_jax.sampling.solvers import SOLVERS
from reground_jax.sampling.solvers.adams_bashforth import ADAMS_BASHFORTH
from reground_jax.settings import ETA_SOLVERS, SOLVER_NAMES
from tests.schedulers import (
    FILES,
    SD14,
    SHAPE,
    SILENT,
    ZERO_SNR,
    denoiser,
    relative_error,
    run_ours,
    run_theirs,
    schedule_of,
    theirs_from,
    unit_noise,
    update,
)

# diffusers calls np.array on torch tensors, which NumPy 2 warns about. Not ours to change.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Both sides use float32, as does diffusers' alphas_cumprod (a product of 1000 factors), which alone
# causes an error of some 2e-6. A wrong coefficient causes 1e-3 or more (last tests).
TOLERANCE = 1e-5

COMPARED = [name for name in SOLVER_NAMES if name != "plms"]  # which has its own test below


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", COMPARED)
def test_twenty_steps_equal_diffusers_under_every_scheduler_file(name, file):
    x_T = unit_noise(0, *SHAPE)
    theirs = run_theirs(name, FILES[file], 20, x_T)
    assert relative_error(run_ours(name, schedule_of(FILES[file]), 20, x_T), theirs) < TOLERANCE


# 1 and 2: no room for a history; 3 and 7: 1000 is not a multiple, and 7 has each order once;
# 30: a common choice that does not divide 1000.
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("file", ["sd14", "sd2", "trailing", "linspace", "silent"])
@pytest.mark.parametrize("name", COMPARED)
def test_any_number_of_steps_equals_diffusers(name, file, num_steps):
    x_T = unit_noise(1, *SHAPE)
    theirs = run_theirs(name, FILES[file], num_steps, x_T)
    ours = run_ours(name, schedule_of(FILES[file]), num_steps, x_T)
    # Euler's only step under linspace starts at time 0, where 1 - alphas_cumprod = 8.5e-4 in
    # diffusers' float32 is off by up to 3.5e-5 of itself, so its square root by half of that.
    only_time_0 = num_steps == 1 and name in ("euler", "euler_ancestral")
    assert relative_error(ours, theirs) < (2e-5 if only_time_0 else TOLERANCE)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", COMPARED)
def test_the_unet_is_told_the_time_steps_that_diffusers_tells_it(name, file):
    scheduler = theirs_from(FILES[file], name)
    for num_steps in (1, 4, 20, 30):
        scheduler.set_timesteps(num_steps)
        plan = SOLVERS[name].plan(schedule_of(FILES[file]), num_steps)
        np.testing.assert_array_equal(plan.timesteps, scheduler.timesteps.numpy())


@pytest.mark.parametrize("file", ["sd14", "sd2", "silent", "trailing"])
@pytest.mark.parametrize("eta", [0.7, 1.0])  # 1.0 leaves no room for epsilon in the last step
def test_ddim_with_noise_equals_diffusers_given_the_same_noise(file, eta):
    x_T = unit_noise(2, *SHAPE)
    theirs = run_theirs("ddim", FILES[file], 20, x_T, eta=eta)
    ours = run_ours("ddim", schedule_of(FILES[file]), 20, x_T, eta=eta)
    assert relative_error(ours, theirs) < TOLERANCE
    without = run_ours("ddim", schedule_of(FILES[file]), 20, x_T)
    assert relative_error(ours, without) > 0.1  # the noise matters


@pytest.mark.parametrize("spacing", ["trailing", "leading"])  # leading misses the last time step
@pytest.mark.parametrize("num_steps", [4, 20])
@pytest.mark.parametrize("name", [n for n in COMPARED if n != "pndm"])
def test_a_schedule_of_zero_terminal_snr_equals_diffusers(name, num_steps, spacing):
    file, x_T = {**ZERO_SNR, "timestep_spacing": spacing}, unit_noise(12, *SHAPE)
    schedule = schedule_of(file)
    ours, theirs = run_ours(name, schedule, num_steps, x_T), run_theirs(name, file, num_steps, x_T)
    # diffusers' Euler subtracts numbers of size 4096 in float32, which costs 2.5e-4 at size 1.
    big = spacing == "trailing" and name.startswith("euler")
    assert relative_error(ours, theirs) < (2e-4 if big else TOLERANCE)
    other = run_ours(name, dataclasses.replace(schedule, rescale_betas_zero_snr=False), 20, x_T)
    assert relative_error(other, run_ours(name, schedule, 20, x_T)) > 1e-3


def test_euler_subtracts_no_large_numbers():
    """Where the first step is from sigma = 4096 to 0: its outcome is x_0 = -v."""
    schedule, x_T = schedule_of(ZERO_SNR), unit_noise(12, *SHAPE)
    for name in ("euler", "euler_ancestral"):
        v = denoiser(x_T, 999.0)
        assert relative_error(run_ours(name, schedule, 1, x_T), x_T / 4096 - v) < 1e-5


def test_solvers_that_would_divide_by_zero_refuse_pure_noise():
    schedule = dataclasses.replace(schedule_of(ZERO_SNR), skip_prk_steps=True)
    for name in ("plms", "pndm"):
        with pytest.raises(ValueError, match="begin in pure noise .*: use solver='ddim'"):
            SOLVERS[name].plan(schedule, 4)
        SOLVERS[name].plan(dataclasses.replace(schedule, timestep_spacing="leading"), 4)


def test_epsilon_says_nothing_about_the_image_where_there_is_only_noise():
    with pytest.raises(ValueError, match="rescale_betas_zero_snr needs prediction_type 'v_pred"):
        NoiseSchedule(rescale_betas_zero_snr=True)


def published_plms(schedule: NoiseSchedule, num_steps: int, x: np.ndarray) -> np.ndarray:
    """PLMS as in CompVis/latent-diffusion, written out in float64."""
    betas = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, 1000) ** 2
    left = np.cumprod(1 - betas)
    times = np.arange(num_steps) * (1000 // num_steps) + 1
    before = np.concatenate([left[:1], left[times[:-1]]])

    def epsilon(x, t):
        output = denoiser(x, float(t)).astype(np.float64)
        if schedule.prediction_type == "v_prediction":
            return left[t] ** 0.5 * output + (1 - left[t]) ** 0.5 * x
        return output

    def move(x, e, i):
        now, then = left[times[i]], before[i]
        x0 = (x - (1 - now) ** 0.5 * e) / now**0.5
        return then**0.5 * x0 + (1 - then) ** 0.5 * e

    old = []
    for i in range(num_steps)[::-1]:
        e = epsilon(x, times[i])
        if not old:
            then = epsilon(move(x, e, i), times[max(i - 1, 0)])
            mean = (e + then) / 2
        elif len(old) == 1:
            mean = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            mean = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            mean = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        x = move(x, mean, i)
        old = [*old, e][-3:]
    return x


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 20, 30, 50])  # 50: the paper's
def test_plms_equals_the_published_algorithm(prediction_type, num_steps):
    schedule = NoiseSchedule(prediction_type=prediction_type)  # silent: plms has its own defaults
    x_T = unit_noise(4, *SHAPE)
    published = published_plms(schedule, num_steps, x_T.astype(np.float64))
    assert relative_error(run_ours("plms", schedule, num_steps, x_T), published) < TOLERANCE


def test_plms_keeps_what_the_scheduler_file_says():
    # On epsilon with leading spacing, PLMS and diffusers' PNDM are one algorithm (n > 1).
    for file in (SD14, FILES["final_alpha_one"], {**SILENT, "steps_offset": 0}):
        x_T = unit_noise(5, *SHAPE)
        ours = run_ours("plms", schedule_of(file), 20, x_T)
        assert relative_error(ours, run_theirs("pndm", file, 20, x_T)) < TOLERANCE


def test_plms_under_trailing_spacing_goes_from_each_time_step_to_the_next():
    plan = SOLVERS["plms"].plan(schedule_of(FILES["trailing"]), 4)
    # round(1000 - 250 i) - 1, the second one twice
    np.testing.assert_array_equal(plan.timesteps, [999, 749, 749, 499, 249])


def test_the_state_stays_where_the_plan_says_it_is_while_epsilon_is_constant():
    """A constant epsilon makes every order exact, so x_0 is recovered whatever the history.

    Fresh noise is as much as is missing if none of it is added, which previews rely on.
    """
    schedule = NoiseSchedule(set_alpha_to_one=True)
    x0, epsilon = unit_noise(6, *SHAPE), unit_noise(7, *SHAPE)
    for name, solver in SOLVERS.items():
        if name == "pndm":  # whose steps end at t - 1000 // n, not where the next one begins
            continue
        plan = solver.plan(dataclasses.replace(schedule, clip_sample=False), 10)
        x_T = plan.alpha[0] * x0 + plan.sigma[0] * epsilon
        state = solver.init(jnp.asarray(x_T / plan.initial_scale), plan)
        for e in range(len(plan.timesteps)):
            row = plan.row(e)
            if row.first:  # the state is where the plan says it is
                there = row.alpha * x0 + row.sigma * epsilon
                np.testing.assert_allclose(state.x, there, atol=1e-5 * np.abs(there).max())
            state = update(solver, state, epsilon, row, np.zeros_like(x0))
            if e + 1 < len(plan.timesteps):
                sigma = plan.sigma[e + 1]
                missing = sigma - np.sqrt(sigma**2 - row.fresh**2)
                state = state._replace(x=state.x + missing * epsilon)
        # At time 999, rounding of x_0 is magnified by sigma / alpha = 15.
        np.testing.assert_allclose(state.x, x0, atol=2e-5 * np.abs(x0).max())


@pytest.mark.parametrize("name", SOLVERS)
def test_a_plan_has_one_row_per_evaluation_in_the_order_of_the_steps(name):
    plan = SOLVERS[name].plan(schedule_of(SD14), 5)
    steps = plan.step.tolist()
    assert steps == sorted(steps) and set(steps) == {0, 1, 2, 3, 4}
    assert plan.first.tolist() == [step not in steps[:row] for row, step in enumerate(steps)]
    for step in range(6):
        assert plan.evaluations_before(step) == sum(other < step for other in steps)
    rows = {np.shape(leaf)[0] for leaf in jax.tree.leaves(plan) if np.ndim(leaf)}
    assert rows == {len(steps)}
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(plan)}
    assert dtypes == {"float32", "int32", "bool"}


@pytest.mark.parametrize("name", ["plms", "pndm"])
def test_plms_and_pndm_evaluate_twice_in_the_first_step(name):
    assert SOLVERS[name].plan(schedule_of(SD14), 5).step.tolist() == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_compiled_loop_over_rows_equals_the_python_loop(name):
    solver = SOLVERS[name]
    plan = solver.plan(schedule_of(SD14), 6)
    x_T = jnp.asarray(unit_noise(8, *SHAPE))
    noise = jnp.asarray(unit_noise(3, *SHAPE)) if solver.stochastic(0) else None

    def body(e, carry):
        plan, state = carry
        row = plan.row(e)
        output = jnp.tanh(state.x * row.input_scale + row.timesteps / 500 - 1)
        return plan, solver.update(state, output, row, noise)

    @jax.jit
    def loop(plan, x_T, stop):
        return jax.lax.fori_loop(0, stop, body, (plan, solver.init(x_T, plan)))[1].x

    carry = plan, solver.init(x_T, plan)
    for e in range(len(plan.timesteps)):
        carry = body(e, carry)
    # Fused multiply-adds differ by rounding only.
    np.testing.assert_allclose(
        loop(plan, x_T, len(plan.timesteps)), carry[1].x, atol=2e-6 * np.abs(carry[1].x).max()
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_the_state_stays_float32_and_batch_first_under_a_bfloat16_network(name):
    plan = SOLVERS[name].plan(schedule_of(SD14), 3)
    state = SOLVERS[name].init(jnp.asarray(unit_noise(9, *SHAPE)), plan)
    noise = unit_noise(3, *SHAPE)
    after = update(SOLVERS[name], state, jnp.ones(SHAPE, jnp.bfloat16), plan.row(0), noise)
    for leaf in (*jax.tree.leaves(state), *jax.tree.leaves(after)):
        assert (leaf.shape, leaf.dtype) == (SHAPE, jnp.float32)
    assert jax.tree.structure(state) == jax.tree.structure(after)  # or no loop could carry it


def test_solvers_add_noise_always_or_as_eta_says_or_never():
    always = {name for name, solver in SOLVERS.items() if solver.stochastic(0.0)}
    assert always == {"dpmpp_2m_sde", "euler_ancestral", "lcm"}
    as_eta_says = {name for name, solver in SOLVERS.items() if solver.stochastic(0.5)} - always
    assert as_eta_says == set(ETA_SOLVERS)
    for name, solver in SOLVERS.items():
        fresh = np.asarray(solver.plan(schedule_of(SD14), 5).fresh)
        assert (fresh[:-1] > 0).all() == fresh.any() == (name in always) and fresh[-1] == 0


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "euler_ancestral", "lcm"])
def test_noise_cannot_be_forgotten(name):
    solver = SOLVERS[name]
    plan = solver.plan(schedule_of(SD14), 5)
    state = solver.init(jnp.zeros(SHAPE), plan)
    with pytest.raises(TypeError, match="missing .*: 'noise'"):
        solver.update(state, jnp.zeros(SHAPE), plan.row(0))


def test_every_file_with_a_solver_is_named_in_the_settings():
    folder = Path(solvers.__file__).parent
    found = {path.stem for path in folder.glob("*.py") if "\nSOLVER = " in path.read_text()}
    assert found == set(SOLVER_NAMES)


@pytest.mark.parametrize("name", [n for n in SOLVERS if n not in ETA_SOLVERS])
def test_eta_is_refused_by_deterministic_solvers(name):
    with pytest.raises(
        ValueError, match="eta is 0.5, but this solver does not take eta: .* 'ddim'"
    ):
        SOLVERS[name].plan(schedule_of(SD14), 10, eta=0.5)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_ddim_refuses_an_eta_that_it_cannot_use(eta):
    with pytest.raises(ValueError, match="eta is .*: it must be from 0"):
        SOLVERS["ddim"].plan(schedule_of(SD14), 10, eta=eta)


def test_pndm_refuses_a_schedule_that_wants_runge_kutta_steps():
    for silent_or_false in (None, False):
        with pytest.raises(ValueError, match="skip_prk_steps .* use solver='plms'"):
            SOLVERS["pndm"].plan(NoiseSchedule(skip_prk_steps=silent_or_false), 10)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("num_steps", [0, -1, 1001])  # none, and one more than were trained
def test_a_number_of_steps_that_does_not_fit_is_refused(name, num_steps):
    with pytest.raises(ValueError, match="num_steps is .*: it must be from 1 to"):
        SOLVERS[name].plan(schedule_of(SD14), num_steps)


def test_lcm_takes_no_more_steps_than_its_model_was_distilled_at():
    with pytest.raises(ValueError, match="num_steps is 51: it must be from 1 to 50 with solver"):
        SOLVERS["lcm"].plan(schedule_of(SD14), 51)
    assert len(SOLVERS["lcm"].plan(schedule_of(FILES["lcm"]), 60).timesteps) == 60


def test_an_offset_that_leaves_the_schedule_is_refused():
    # 1000 leading steps end at 999; offset 1 makes it 1000, where diffusers fails with IndexError.
    with pytest.raises(ValueError, match="start at time step 1000, but the last one is 999"):
        SOLVERS["ddim"].plan(NoiseSchedule(steps_offset=1), 1000)


@pytest.mark.parametrize("field, value", [("beta_schedule", "cosine"), ("timestep_spacing", "log")])
def test_an_unknown_schedule_is_refused_by_name(field, value):
    schedule = NoiseSchedule()
    object.__setattr__(schedule, field, value)  # past the type checks, as JSON comes
    with pytest.raises(ValueError, match=f"{field} is '{value}'"):
        SOLVERS["ddim"].plan(schedule, 10)


def test_trailing_spacing_has_exactly_as_many_steps_as_asked_for():
    # 61: the first number for which numpy's arange(1000, 0, -1000 / n) holds n + 1 entries.
    plan = SOLVERS["euler"].plan(NoiseSchedule(timestep_spacing="trailing"), 61)
    assert len(plan.timesteps) == 61 and plan.timesteps[-1] == 15  # round(1000 / 61) - 1


# Mutations that the tolerance above must catch.


def test_the_tolerance_sees_an_averaged_epsilon_in_the_history():
    schedule, x_T = NoiseSchedule(), unit_noise(10, *SHAPE)
    plan = SOLVERS["plms"].plan(schedule, 20)
    push = plan.coefficients["push"].copy()
    push[0], push[1] = 0, 1  # keep the second evaluation instead of the first
    wrong = plan._replace(coefficients={**plan.coefficients, "push": push})
    right = run_ours("plms", schedule, 20, x_T, plan=plan)
    assert relative_error(run_ours("plms", schedule, 20, x_T, plan=wrong), right) > 100 * TOLERANCE


# Karras levels and those of LCM's distillation depend on neither.
@pytest.mark.parametrize("name", [n for n in SOLVERS if n not in ("dpmpp_2m_karras", "lcm")])
@pytest.mark.parametrize("change", [{"steps_offset": 0}, {"timestep_spacing": "trailing"}])
def test_the_tolerance_sees_another_offset_or_spacing(name, change):
    schedule = dataclasses.replace(schedule_of(SD14), timestep_spacing="leading")
    x_T = unit_noise(11, *SHAPE)
    right = run_ours(name, schedule, 20, x_T)
    wrong = run_ours(name, dataclasses.replace(schedule, **change), 20, x_T)
    assert relative_error(wrong, right) > 50 * TOLERANCE


def test_adams_bashforth_weights_add_up_to_one():
    np.testing.assert_allclose(ADAMS_BASHFORTH.sum(axis=1), 1, rtol=1e-15)  # float64 rounding

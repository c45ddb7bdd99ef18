"""A sweep over gamma gives what single runs give, and runs the steps they share once."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax import Layout, Pipeline
from reground_jax.bench.harness import BACKEND_COMPILE
from reground_jax.devices import compile_clock
from reground_jax.sampling.solvers.plan import State
from reground_jax.sampling.sweep import Schedule, branch, num_steps
from reground_jax.settings import Settings
from tests.models import ONE_LEVEL, tiny_model
from tests.reference import relative_error

CAT = Layout("a cat and a dog", ["a cat", "a dog"], [(0, 0.1, 0.4, 0.9), (0.5, 0.2, 1, 0.8)])
DOG = Layout("one dog", ["a dog"], [(0.1, 0.1, 0.4, 0.9)])
GAMMAS = [tenth / 10 for tenth in range(11)]


def schedules(*gammas, num_steps: int = 10, **fields) -> list[Schedule]:
    unet = tiny_model(**ONE_LEVEL).config.unet
    return [Schedule.of(Settings(gamma=g, num_steps=num_steps, **fields), unet) for g in gammas]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_model(tiny_model(**ONE_LEVEL))


# PLMS evaluates twice in the first step; the other adds noise; both have a history.
@pytest.mark.parametrize(
    ("wiring", "solver"), [("parallel", "plms"), ("sequential", "dpmpp_2m_sde")]
)
def test_a_sweep_gives_the_latents_of_single_runs(pipe, wiring, solver):
    keywords = dict(
        wiring=wiring, solver=solver, num_steps=10, seeds=[3, 4], guidance_scale=5.0,
        output="latents",
    )  # fmt: skip
    swept = pipe.sweep([CAT, DOG], gammas=GAMMAS, **keywords)
    assert list(swept) == GAMMAS
    for gamma in GAMMAS:
        single = pipe([CAT, DOG], gamma=gamma, **keywords)
        assert relative_error(swept[gamma], single) < 1e-5
    # Each gamma gives a different number of grounded steps, and so different latents.
    for one, other in itertools.pairwise(GAMMAS):
        assert relative_error(swept[one], swept[other]) > 1e-5


def test_eleven_gammas_take_six_and_a_half_runs(pipe):
    done = []
    pipe.sweep(
        [CAT], gammas=GAMMAS, num_steps=10, output="latents",
        progress=lambda batch, batches, steps: done.append(steps),
    )  # fmt: skip
    assert done == list(range(1, 66))  # 6.5 runs of 10 steps
    assert num_steps(schedules(*GAMMAS)) == 65
    assert num_steps(schedules(*GAMMAS, num_steps=50)) == 50 + sum(
        50 - 5 * tenth for tenth in range(10)
    )


def test_a_sweep_may_hold_decays_equal_schedules_and_many_batches(pipe):
    gammas = [1.0, (0.2, 0.6, 0.2), 0.0, 0.05, (0.2, 0.4, 0.4)]  # int(.05 * 10) is 0 steps
    keywords = dict(num_steps=10, output="numpy", batch_size=2)
    swept = pipe.sweep([CAT, DOG, CAT], gammas=gammas, **keywords)
    for gamma in gammas:
        single = pipe([CAT, DOG, CAT], gamma=gamma, **keywords)
        np.testing.assert_allclose(swept[gamma], single, atol=1e-5)
    np.testing.assert_array_equal(swept[0.0], swept[0.05])


def test_shared_steps_are_run_once_and_no_branch_sees_another():
    """Records the gates along each branch: each final state has passed exactly its own."""
    runs = schedules(0.3, 1.0, (0.3, 0.4, 0.3), 0.3, 0.0)
    steps = []

    def advance(state: State, schedule: Schedule, start, stop) -> State:
        steps.extend(range(start, stop))
        return State(state.x.at[0, 0, start:stop, 0].set(schedule.gates[start:stop]))

    finals = branch(State(jnp.full((1, 1, 10, 1), -1.0)), runs, advance)
    for final, run in zip(finals, runs, strict=True):
        np.testing.assert_array_equal(np.asarray(final.x)[0, 0, :, 0], run.gates)
    # 10 of gamma 0; 3 grounded, and after them 7 of gamma 0.3, of gamma 1 and of the decay.
    assert len(steps) == num_steps(runs) == 10 + 3 + 7 + 7 + 7


def test_couplings_that_differ_late_or_after_gamma_share_their_steps():
    late = [[0.5, 1.0], [0.5, 0.0]]
    whole, changed = (schedules(1.0, wiring="coupled", coupling=c)[0] for c in (1.0, late))
    assert num_steps([whole, changed]) == 10 + 5
    short, cut = (schedules(0.5, wiring="coupled", coupling=c)[0] for c in (1.0, late))
    assert num_steps([short, cut]) == 10  # nothing reads the coupling once the fusers are off
    heavier = schedules(0.5, wiring="coupled", text_weight=[[0.5, 1.0], [0.5, 2.0]])[0]
    assert num_steps([short, heavier]) == 10 + 5  # but the text is still read


def test_a_sweep_over_couplings_gives_what_single_runs_give(pipe):
    keywords = dict(wiring="coupled", num_steps=6, solver="ddim", output="latents")
    couplings = [1.0, 0.0, {"mid": 0.0}, [[0.5, 1.0], [0.5, {"down": 0.0}]]]
    swept = pipe.sweep([CAT, DOG], couplings=couplings, gammas=[0.5, 1.0], **keywords)
    assert len(swept) == 8
    for (coupling, gamma), made in swept.items():
        single = pipe([CAT, DOG], coupling=coupling, gamma=gamma, **keywords)
        assert relative_error(made, single) < 1e-5
    assert list(pipe.sweep([CAT], couplings=[0.5], **keywords)) == [0.5]


def test_another_table_compiles_nothing(pipe):
    keywords = dict(wiring="coupled", num_steps=6, solver="ddim", output="latents", gamma=0.5)
    first = pipe([CAT], coupling=0.25, **keywords)
    with compile_clock(BACKEND_COMPILE) as spent:
        other = pipe(
            [CAT], coupling={"down": 0.3}, text_weight=[[0.5, 0.9], [0.5, 1.1]], **keywords
        )
    assert spent() == 0
    assert relative_error(first, other) > 1e-4


def test_a_sweep_refuses_what_a_run_refuses(pipe):
    with pytest.raises(ValueError, match="gammas is empty"):
        pipe.sweep([CAT], gammas=[])
    with pytest.raises(ValueError, match="gamma is"):
        pipe.sweep([CAT], gammas=[0.5, 1.5])
    with pytest.raises(ValueError, match="only wiring='coupled' reads it"):
        pipe.sweep([CAT], couplings=[0.5])
    with pytest.raises(TypeError, match=r"needs gammas=\[...\], couplings"):
        pipe.sweep([CAT])
    with pytest.raises(TypeError, match="takes no 'gamma' of its own"):
        pipe.sweep([CAT], gammas=[0.5], gamma=1.0)
    assert pipe.sweep([], gammas=[0.5], num_steps=1) == {0.5: []}

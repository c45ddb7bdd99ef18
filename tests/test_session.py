"""One batch in progress: run in stretches, previewed, canceled, swept."""

import gc
import threading
import weakref
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax import Layout, Pipeline, Settings
from reground_jax.sampling.guidance import guide
from reground_jax.session import Canceled
from tests.models import ONE_LEVEL, tiny_model
from tests.reference import relative_error

CAT = Layout("a cat and a dog", ["a cat", "a dog"], [(0, 0.1, 0.4, 0.9), (0.5, 0.2, 1, 0.8)])


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_model(tiny_model(**ONE_LEVEL))


# A history of two steps; fresh noise at each step.
@pytest.mark.parametrize("solver", ["unipc", "lcm"])
def test_stretches_of_any_length_give_the_whole_to_the_bit(pipe, solver):
    settings = Settings(solver=solver, num_steps=8, gamma=0.5, guidance_interval=(0, 0.75))
    whole = pipe([CAT], settings, seeds=[4], output="latents")
    for stops in ([1, 2, 3, 4, 5, 6, 7], [2], [7], [3, 3]):
        session = pipe.session([CAT], settings, seeds=[4])
        for stop in stops:
            assert session.run(stop).step == stop
        np.testing.assert_array_equal(session.finish(), whole)
        np.testing.assert_array_equal(session.finish(), whole)  # nothing is left to do


@pytest.mark.parametrize(
    ("solver", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("euler_ancestral", 0.0), ("lcm", 0.0)]
)
def test_a_preview_is_what_the_last_prediction_headed_for(pipe, solver, eta):
    """Under a solver of first order, the x_0 of the U-Net's output, computed by hand."""
    settings = Settings(solver=solver, eta=eta, num_steps=5, guidance_scale=3.0)
    programs = pipe.programs
    plan = programs.plan(settings)
    session = pipe.session([CAT], settings, seeds=[4]).run(2)
    prepared = programs.prepare(pipe.params, pipe.encode([CAT]), plan.timesteps)
    x, alpha, sigma = session.latents, plan.alpha[2], plan.sigma[2]
    output = pipe.programs.unet(pipe.params)(
        x * plan.input_scale[2], prepared.at(2), gate=jnp.ones(()), wiring="parallel",
        attend=programs.hardware.attend,
    )  # fmt: skip
    epsilon = guide(output, 3.0, 1)
    expected = pipe.decode((x - sigma * epsilon) / alpha)
    assert relative_error(session.run(3).preview(), expected) < 1e-4  # float32 differences
    last = session.run(5).preview()
    np.testing.assert_array_equal(last, pipe.decode(session.latents))


def test_previews_come_nearer_to_the_image(pipe):
    session = pipe.session([CAT], num_steps=20, solver="dpmpp_2m", guidance_scale=1, seeds=[4])
    previews = []
    session.run(progress=lambda _: previews.append(np.asarray(session.preview())))
    far = [np.abs(preview - previews[-1]).mean() for preview in previews]
    assert len(previews) == 20 and far[2] > 4 * far[17]


def test_steps_only_go_forward_and_there_is_no_preview_of_nothing(pipe):
    session = pipe.session([CAT], num_steps=10)
    with pytest.raises(ValueError, match="nothing to preview before the first step"):
        session.preview()
    session.run(2)
    for stop in (1, 11):
        with pytest.raises(
            ValueError, match=f"stop is {stop}, but this session is at step 2 of 10"
        ):
            session.run(stop)
    with pytest.raises(ValueError, match="is at step 2: start a new one to sweep"):
        session.sweep([session.settings])


def test_a_sweep_leaves_the_session_where_it_was(pipe):
    session = pipe.session([CAT], num_steps=10, seeds=[9])
    half, whole = session.sweep([replace(session.settings, gamma=gamma) for gamma in (0.5, 1.0)])
    np.testing.assert_array_equal(session.finish(), whole)
    assert relative_error(half, whole) > 1e-5


def test_a_canceled_session_stops_at_the_next_step_and_frees_its_arrays(pipe):
    session, done, live = pipe.session([CAT], num_steps=10), [], []

    def report(step: int) -> None:
        done.append(step)
        if step == 2:
            live.append(weakref.ref(session.latents))
            another = threading.Thread(target=session.cancel)
            another.start()
            another.join()

    with pytest.raises(Canceled):
        session.run(progress=report)
    assert done == [1, 2] and repr(session) == "Session(1 images, canceled)"
    gc.collect()
    assert live[0]() is None
    for call in (
        session.run,
        session.preview,
        session.finish,
        lambda: session.sweep([session.settings]),
    ):
        with pytest.raises(Canceled, match="start a new one"):
            call()


def test_a_session_says_where_it_is(pipe):
    session = pipe.session([CAT], num_steps=10)
    assert repr(session.run(1)) == "Session(1 images, step 1 of 10)"

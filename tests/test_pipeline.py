"""Proofs 3 and 4: the whole pipeline against diffusers' own, and the loop against plain Python."""

import functools
import warnings
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from reground_jax import Layout, Pipeline, Settings
from reground_jax.networks.transformer import reads_grounding, reads_text
from reground_jax.networks.unet import UNet
from reground_jax.sampling.gate import gate_table, grounded_steps
from reground_jax.sampling.guidance import guide
from reground_jax.sampling.loop import Inputs
from reground_jax.sampling.noise import FRESH, initial_noise, step_noise
from reground_jax.sampling.solvers import SOLVERS
from reground_jax.settings import ETA_SOLVERS, SOLVER_NAMES, WIRINGS
from tests.models import ONE_LEVEL, converted, tiny_model
from tests.reference import SD2_SCHEDULER, SD14_SCHEDULER, nhwc, relative_error
from tests.schedulers import drawing, scheduler_of

# diffusers' schedulers multiply numpy scalars by tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

CAT = Layout("a cat and a dog", ["a cat", "a dog"], [(0, 0.1, 0.4, 0.9), (0.5, 0.2, 1, 0.8)], "bad")
DOG = Layout("one dog", ["a dog"], [(0.1, 0.1, 0.4, 0.9)])
BARE = Layout("nothing in particular")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_model(tiny_model(**ONE_LEVEL))


def start_noise(batch: int, height: int, width: int, channels: int = 4) -> np.ndarray:
    random = np.random.default_rng(3)
    return random.standard_normal((batch, height, width, channels)).astype(np.float32)


def theirs(
    pipeline, layout, latents, *, solver, gamma, num_steps, guidance_scale=5.0, factor=8, seed=0
):
    """Latents [1, h, w, C] from diffusers' StableDiffusionGLIGENPipeline.

    A scheduler that adds noise draws ours, of this seed.
    """
    kind, options = scheduler_of(solver)
    file = SD2_SCHEDULER if pipeline.unet.config.use_linear_projection else SD14_SCHEDULER
    own = getattr(diffusers, file["_class_name"]).from_config(file)
    pipeline.scheduler = getattr(diffusers, kind).from_config(own.config, **options)
    pipeline.set_progress_bar_config(disable=True)
    seeds, adds_noise = np.array([seed], np.uint32), SOLVERS[solver].adds_noise
    noise = [
        np.array(step_noise(seeds, latents.shape[1:], FRESH, step).transpose(0, 3, 1, 2))
        for step in range(num_steps if adds_noise else 0)
    ]
    with drawing(pipeline.scheduler, noise):
        result = pipeline(
            prompt=layout.prompt,
            negative_prompt=layout.negative_prompt,
            gligen_phrases=list(layout.phrases),
            gligen_boxes=[list(box) for box in layout.boxes],
            gligen_scheduled_sampling_beta=gamma,
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            latents=torch.tensor(latents.transpose(0, 3, 1, 2)),
            height=latents.shape[1] * factor,
            width=latents.shape[2] * factor,
            output_type="latent",
        )
    pipeline.enable_fuser(True)  # which it leaves off, in a model that other tests use, too
    return nhwc(result.images)


@pytest.mark.parametrize(
    "solver",
    [
        # The loop draws noise for these as for lcm.
        pytest.param(name, marks=pytest.mark.slow)
        if name in ("dpmpp_2m_sde", "euler_ancestral")
        else name
        for name in SOLVER_NAMES
    ],
)
def test_the_pipeline_equals_diffusers_under_every_solver(solver):
    model, reference, _ = converted("small")
    x = start_noise(2, 8, 9)  # 64 x 72 pixels: not square, and 9 is odd
    settings: dict[str, Any] = dict(gamma=1.0, num_steps=10, solver=solver)
    ours = Pipeline.from_model(model)(
        [CAT, DOG], wiring="sequential", guidance_scale=5.0, latents=x, height=64, width=72,
        seeds=[5, 6], output="latents", **settings,
    )  # fmt: skip
    for row, layout in enumerate([CAT, DOG]):
        expected = theirs(reference, layout, x[row : row + 1], seed=5 + row, **settings)
        assert relative_error(ours[row : row + 1], expected) < 1e-5  # 1.5e-6 measured


def test_the_pipeline_equals_diffusers_at_partial_gamma_and_v_prediction():
    model, reference, _ = converted("sd2")
    x = start_noise(1, 8, 8)
    # int(0.35 * 10) = 3 grounded steps; DDIM's list has no extra entry, so diffusers agrees.
    settings: dict[str, Any] = dict(gamma=0.35, num_steps=10, solver="ddim")
    ours = Pipeline.from_model(model)(
        CAT, wiring="sequential", guidance_scale=5.0, latents=x, output="latents", **settings
    )
    assert relative_error(ours, theirs(reference, CAT, x, **settings)) < 1e-5
    other = theirs(reference, CAT, x, **settings | {"gamma": 0.45})
    assert relative_error(ours, other) > 1e-3  # one more grounded step would be noticed


@pytest.mark.slow
def test_images_of_520_pixels_decode_as_in_diffusers():
    model, reference, _ = converted("small")
    x = start_noise(1, 65, 65)
    settings: dict[str, Any] = dict(gamma=1.0, num_steps=2, solver="ddim")
    ours = Pipeline.from_model(model)(
        DOG, wiring="sequential", guidance_scale=5.0, latents=x, height=520, width=520,
        output="latents", **settings,
    )  # fmt: skip
    assert relative_error(ours, theirs(reference, DOG, x, **settings)) < 1e-5


def test_decoded_images_equal_diffusers(pipe):
    model, reference, _ = converted("small")
    ours = Pipeline.from_model(model)
    latents = start_noise(1, 8, 8)
    with torch.no_grad():
        scaled = torch.tensor(latents.transpose(0, 3, 1, 2)) / reference.vae.config.scaling_factor
        image = reference.image_processor.postprocess(reference.vae.decode(scaled).sample, "np")
    np.testing.assert_allclose(ours.decode(jnp.asarray(latents)), image, atol=1e-5)


@pytest.mark.parametrize(
    "solver",
    [
        # Noise, and a first step of two evaluations with a history; the updates of the others equal
        # diffusers', both above and in test_solvers.py.
        name if name in ("ddim", "plms") else pytest.param(name, marks=pytest.mark.slow)
        for name in SOLVER_NAMES
    ],
)
def test_the_compiled_loop_equals_a_plain_python_loop(pipe, solver):
    settings = Settings(solver=solver, num_steps=6, gamma=(0.34, 0.5, 0.16), guidance_scale=3.0)
    eta = 0.6 if solver in ETA_SOLVERS else 0.0
    seeds = np.array([5, 6], np.uint32)
    compiled = pipe(
        [CAT, DOG], seeds=[5, 6], solver=solver, num_steps=6, gamma=(0.34, 0.5, 0.16),
        guidance_scale=3.0, eta=eta, output="latents",
    )  # fmt: skip

    one = SOLVERS[solver]
    plan = one.plan(pipe.config.schedule, 6, eta=eta)
    gates = gate_table(settings.gamma, 6)  # [1, 1, 2/3, 1/3, 0, 0]: fusers in four steps
    assert grounded_steps(gates) == 4
    unet: UNet = pipe.programs.unet(pipe.params)
    prepared = pipe.programs.prepare(pipe.params, pipe.encode([CAT, DOG]), plan.timesteps)
    state = one.init(initial_noise(seeds, (8, 8, 4)), plan)

    @jax.jit  # one U-Net call; the loop over rows is Python's
    def denoise(x, rows, gate):
        return unet(x, rows, gate=gate, wiring="parallel", attend=pipe.programs.hardware.attend)

    for evaluation in range(len(plan.timesteps)):
        row = plan.row(evaluation)
        gate = gates[row.step] if row.step < 4 else None
        output = denoise(state.x * row.input_scale, prepared.at(evaluation), gate)
        noise = step_noise(seeds, (8, 8, 4), FRESH, row.step) if one.stochastic(eta) else None
        state = one.update(state, guide(output, 3.0, batch=2), row, noise)
    assert relative_error(compiled, state.x) < 1e-5


def test_segments_are_bit_equal_to_the_whole_and_report_progress(pipe):
    steps = []
    whole = pipe([CAT], num_steps=10, gamma=0.4, output="latents")
    parts = pipe(
        [CAT], num_steps=10, gamma=0.4, output="latents",
        progress=lambda batch, batches, done: steps.append((batch, batches, done)),
    )  # fmt: skip
    np.testing.assert_array_equal(whole, parts)
    assert steps == [(0, 1, done) for done in range(1, 11)]


def test_gamma_0_equals_no_grounding_and_gamma_counts_whole_steps(fusions_of_users):
    pipe = Pipeline.from_model(tiny_model(**ONE_LEVEL))

    def run(**settings):
        return pipe([CAT], num_steps=10, output="latents", **settings)

    plain = run(wiring="no_grounding")
    for wiring in (w for w in WIRINGS if reads_text(w) and reads_grounding(w)):
        np.testing.assert_array_equal(run(wiring=wiring, gamma=0.0), plain)
        np.testing.assert_array_equal(run(wiring=wiring, gamma=0.09), plain)  # int(.9) = 0 steps
    assert relative_error(run(gamma=0.1), plain) > 1e-4
    np.testing.assert_array_equal(run(gamma=(0.3, 0.0, 0.7)), run(gamma=0.3))


class CompileCounter:
    """Counts XLA compilations, by JAX's own events."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._event)

    def _event(self, event: str, duration_secs: float, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


def test_steps_with_and_without_fusers_compile_when_they_are_first_needed():
    pipe = Pipeline.from_model(tiny_model(**ONE_LEVEL))
    counter = CompileCounter()

    def compiled(**settings) -> int:
        before = counter.count
        pipe([CAT], num_steps=10, output="latents", **settings)
        return counter.count - before

    compiled(gamma=1.0)
    assert compiled(gamma=0.5) == 1  # the steps without fusers
    assert compiled(gamma=0.0, guidance_scale=2.0) == 0
    # What is prepared differs by wiring; steps without fusers are Stable Diffusion's in all three.
    assert compiled(gamma=0.0, wiring="sequential") == compiled(wiring="no_grounding") == 1
    assert compiled(gamma=1.0, wiring="sequential") == 1


def test_new_arguments_compile_nothing(pipe):
    settings: dict[str, Any] = dict(num_steps=4, solver="ddim", batch_size=2)
    pipe([CAT, DOG], guidance_scale=2.0, gamma=0.5, seeds=[1, 2], **settings)
    counter = CompileCounter()
    other = Layout("a horse", ["a horse"], [(0.2, 0.2, 0.8, 0.8)], negative_prompt="blurry, dark")
    for change in (
        dict(seeds=[7, 8]),
        dict(guidance_scale=9.0),
        dict(gamma=0.25),
        dict(gamma=(0.25, 0.5, 0.25)),  # a gate table
        dict(eta=0.0, height=16, width=16),  # the checkpoint's own size, given explicitly
    ):
        pipe([CAT, DOG], **settings, **{"seeds": [1, 2]} | change)
    pipe([other, CAT], **settings)  # boxes, phrases, prompts, negative prompts
    pipe([BARE, BARE], **settings)  # no boxes
    pipe([DOG], **settings)  # fewer layouts than the batch
    pipe([CAT, DOG, other], **settings)  # more than one batch
    assert counter.count == 0
    jax.jit(lambda x: x + 1)(0)
    assert counter.count > 0  # the counter does count


def test_an_image_does_not_depend_on_the_batch_around_it(pipe):
    settings: dict[str, Any] = dict(num_steps=10, output="latents", batch_size=4)
    together = pipe([CAT, DOG, BARE], seeds=[11, 12, 13], **settings)
    alone = pipe([DOG], seeds=[12], **settings)
    np.testing.assert_array_equal(together[1], alone[0])
    # A different batch size is a different program: equal up to rounding.
    single = pipe([DOG], seeds=[12], **settings | {"batch_size": 1})
    assert relative_error(single[0], together[1]) < 1e-5


def test_guidance_scale_1_skips_the_unconditional_half(pipe):
    conditioning, prepare = (
        pipe.encode([CAT]),
        functools.partial(pipe.programs.prepare, pipe.params),
    )
    timesteps = np.array([1.0], np.float32)
    halves = [
        prepare(conditioning, timesteps, guided=guided).blocks[0].text.key.shape[0]
        for guided in (False, True)
    ]
    assert halves == [1, 2]
    near = pipe([CAT], num_steps=10, guidance_scale=1.0 + 1e-6, output="latents")
    exact = pipe([CAT], num_steps=10, guidance_scale=1, output="latents")
    assert relative_error(exact, near) < 1e-5


def test_an_interval_of_guidance_takes_the_conditional_branch_alone_outside(pipe):
    """Compared with hand-made segments: guided steps 2..5 of 8, no guidance before and after."""
    settings = Settings(solver="dpmpp_2m", num_steps=8)
    programs, params = pipe.programs, pipe.params
    plan = programs.plan(settings)
    conditioning, seeds = pipe.encode([CAT]), np.array([4], np.uint32)
    inputs = Inputs(plan, gate_table(0.5, 8), np.float32(7.5), seeds)
    state = programs.start(plan, settings, seeds)
    for start, stop, guided in ((0, 2, False), (2, 6, True), (6, 8, False)):
        prepared = programs.prepare(params, conditioning, plan.timesteps, guided=guided)
        state = programs.advance(params, state, prepared, inputs, 4, start, stop, settings=settings)

    keywords = dict(seeds=[4], gamma=0.5, solver="dpmpp_2m", num_steps=8, output="latents")
    part = pipe([CAT], guidance_interval=(0.25, 0.75), **keywords)
    np.testing.assert_array_equal(part, state.x)
    steps = []
    again = pipe(
        [CAT], guidance_interval=(0.25, 0.75), progress=lambda *at: steps.append(at), **keywords
    )
    np.testing.assert_array_equal(part, again)
    assert len(steps) == 8
    counter = CompileCounter()
    assert relative_error(pipe([CAT], guidance_interval=(0, 0.5), **keywords), part) > 1e-4
    assert counter.count == 0  # the ends are arguments


def test_on_cpu_the_branches_of_the_parallel_wiring_are_not_packed(pipe):
    timesteps = np.array([1.0], np.float32)
    prepared = pipe.programs.prepare(pipe.params, pipe.encode([CAT]), timesteps, wiring="parallel")
    assert set(prepared.packed) == {None}


def test_bfloat16_pipelines_run_with_float32_state(pipe):
    low = Pipeline.from_model(tiny_model(**ONE_LEVEL), dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(low.params)} == {"bfloat16"}
    latents = low([CAT], num_steps=10, output="latents")
    exact = pipe([CAT], num_steps=10, output="latents")
    assert latents.dtype == np.float32 and np.isfinite(latents).all()
    assert relative_error(latents, exact) < 0.1  # bfloat16 arithmetic, ten steps


def test_outputs_have_their_documented_forms(pipe):
    images = pipe([CAT, DOG], num_steps=6)
    assert [image.size for image in images] == [(16, 16)] * 2
    array = pipe([CAT, DOG], num_steps=6, output="numpy")
    assert array.shape == (2, 16, 16, 3) and array.dtype == np.float32
    assert array.min() >= 0 and array.max() <= 1
    np.testing.assert_array_equal(np.asarray(images[0]), np.round(array[0] * 255))
    assert pipe(CAT, num_steps=10, output="latents").shape == (1, 8, 8, 4)
    assert pipe([], num_steps=6) == []


def test_each_distinct_text_is_encoded_once(pipe, monkeypatch):
    asked = []
    ids = pipe.texts.ids
    monkeypatch.setattr(pipe.texts, "ids", lambda texts: asked.extend(texts) or ids(texts))
    conditioning = pipe.encode([CAT, DOG, DOG, CAT])
    assert sorted(asked) == sorted({"a cat and a dog", "one dog", "bad", "", "a cat", "a dog"})
    assert conditioning.grounding.mask.sum(1).tolist() == [2, 1, 1, 2]
    np.testing.assert_array_equal(conditioning.text[0], conditioning.text[3])


def test_long_prompts_are_cut_with_one_warning_that_shows_what_was_lost(pipe):
    long = Layout("a " * 75 + "elephant zoo")
    with pytest.warns(UserWarning, match="elephant zoo") as caught:
        cut = pipe.encode([long, BARE])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(cut.text[0], pipe.encode([Layout("a " * 75)]).text[0])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(wiring="paralel"), "wiring"),
        (dict(solver="no such solver"), "solver"),
        (dict(gamma=1.5), "gamma"),
        (dict(gamma=(0.5, 0.2, 0.2)), "add up to"),
        (dict(height=100), "multiples of 8"),
        (dict(num_steps=0), "num_steps"),
        (dict(solver="lcm", num_steps=51), "num_steps is 51: it must be from 1 to 50"),
        (dict(eta=0.5), "eta"),
        (dict(seeds=[-1]), "seed"),
        (dict(seeds=[1, 2]), "2 seeds for 1 layouts"),
        (dict(max_boxes=1), "2 boxes"),
        (dict(batch_size=0), "batch_size"),
        (dict(output="jpeg"), "output"),
        (dict(latents=np.zeros((1, 4, 4, 4), np.float32)), "latents have shape"),
    ],
)
def test_bad_arguments_are_refused_before_anything_compiles(pipe, change, sentence):
    counter = CompileCounter()
    with pytest.raises(ValueError, match=sentence):
        pipe([CAT], **change)
    assert counter.count == 0


def test_more_than_thirty_boxes_are_refused_and_never_dropped(pipe):
    crowd = Layout("a crowd", ["a man"] * 31, [(0, 0, 0.5, 0.5)] * 31)
    with pytest.raises(ValueError, match="max_boxes"):
        pipe([crowd])
    assert pipe([crowd], max_boxes=31, num_steps=1, output="latents").shape == (1, 8, 8, 4)


def test_plain_and_inpainting_checkpoints_say_what_they_are():
    plain = Pipeline.from_model(tiny_model(**ONE_LEVEL, grounding=None))
    with pytest.raises(ValueError, match="this is a plain Stable Diffusion checkpoint"):
        plain([CAT])
    assert plain([CAT], wiring="no_grounding", num_steps=1, output="latents").shape == (1, 8, 8, 4)
    with pytest.raises(ValueError, match="has no source, but this is an inpainting model"):
        Pipeline.from_model(tiny_model(**ONE_LEVEL, in_channels=9, inpainting=True))([CAT])

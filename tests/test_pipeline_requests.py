"""How a pipeline rejects requests it does not support, and that nothing wrong runs silently."""

import copy
import dataclasses
import gc
import json
import pickle
import warnings
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from reground_jax import Layout, Pipeline, Settings
from reground_jax.bench.presets import layouts as bench_layouts
from reground_jax.conditioning import Texts, distinct_texts
from reground_jax.convert.locate import built_in
from reground_jax.devices import choose_devices
from reground_jax.hints import HINTS
from reground_jax.model import Model, read_description
from reground_jax.networks.attention import check_backend
from reground_jax.request import CALL_FIELDS, SETTINGS_FIELDS
from tests.models import ONE_LEVEL, tiny_model

CAT = Layout("a cat and a dog", ["a cat", "a dog"], [(0, 0.1, 0.4, 0.9), (0.5, 0.2, 1, 0.8)])
DOG = Layout("one dog", ["a dog"], [(0.1, 0.1, 0.4, 0.9)])


@pytest.fixture(autouse=True)
def without_the_type_checker():
    """These tests pass wrong types on purpose, for the package's own checks to catch."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_model(tiny_model(**ONE_LEVEL))


def test_a_pipeline_is_freed_with_its_last_reference():
    gc.collect()
    pipe = Pipeline.from_model(tiny_model(**ONE_LEVEL))
    # tests/models.py keeps the numpy arrays of the model; the device's are the pipeline's alone.
    array = pipe.params["unet"]["conv_in"]["kernel"]
    session = pipe.session([CAT], num_steps=10).run(1)
    session.preview()
    pipe.sweep([CAT], gammas=[0.0, 1.0], num_steps=10)
    programs = pipe.programs
    compiled = (programs.prepare_program("parallel", True), programs.advance_program(Settings()))
    references = [weakref.ref(value) for value in (pipe, programs, array, session, *compiled)]
    del pipe, programs, array, session, compiled
    assert [reference() for reference in references[:4]] == [None] * 4
    gc.collect()  # the cycles inside the programs are JAX's
    assert not any(reference() for reference in references)


@pytest.mark.parametrize("wiring", ["paralel", "gligan", "", None])
def test_an_unknown_wiring_is_refused_by_every_part(wiring, pipe):
    conditioning, timesteps = pipe.encode([CAT]), np.array([1.0], np.float32)
    with pytest.raises(ValueError, match="wiring .* is unknown"):
        pipe.programs.prepare(pipe.params, conditioning, timesteps, wiring=wiring)
    prepared = pipe.programs.prepare(pipe.params, conditioning, timesteps).at(0)
    with pytest.raises(ValueError, match="wiring .* is unknown"):
        pipe.programs.unet(pipe.params)(
            jnp.zeros((1, 8, 8, 4)), prepared, gate=jnp.ones(()), wiring=wiring,
            attend=pipe.programs.hardware.attend,
        )  # fmt: skip


def test_wirings_go_by_the_names_of_the_papers_too(pipe):
    names = {"reground": "parallel", "GLIGEN": "sequential", "sd": "no_grounding"}
    for alias, name in names.items():
        assert Settings(wiring=alias) == Settings(wiring=name)
    run = dict(num_steps=10, output="latents")
    np.testing.assert_array_equal(
        pipe([CAT], wiring="gligen", **run), pipe([CAT], wiring="sequential", **run)
    )


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("num_inference_steps", "use num_steps"),
        ("generator", "use seeds"),
        ("prompt", r"give Layout\(prompt, phrases, boxes\)"),
        ("gligen_scheduled_sampling_beta", "use gamma"),
        ("output_type", "use output"),
        ("dtype", r"set it once, in Pipeline.load\(name, dtype=...\)"),
        ("num_step", r"did you mean num_steps\?"),
        ("mapper", r"set it once, in Pipeline.load\(name, mapper=...\)"),
        ("qqq", "it takes wiring, coupling"),
    ],
)
def test_the_keywords_of_other_packages_are_answered_with_ours(keyword, hint, pipe):
    with pytest.raises(TypeError, match=f"no argument '{keyword}': {hint}"):
        pipe([CAT], **{keyword: 1})
    with pytest.raises(TypeError, match=f"no argument '{keyword}': {hint}"):
        pipe.sweep([CAT], gammas=[1.0], **{keyword: 1})


def test_no_hint_shadows_a_keyword_of_ours():
    assert not set(HINTS) & set(CALL_FIELDS)


def test_a_sweep_takes_a_list_of_gammas_and_no_other_gamma(pipe):
    with pytest.raises(TypeError, match=r"gammas=\[...\], so it takes no 'gamma' of its own"):
        pipe.sweep([CAT], gammas=[1.0], gamma=0.0)
    with pytest.raises(ValueError, match=r"give a list of them, gammas=\[0.5\]"):
        pipe.sweep([CAT], gammas=0.5)


@pytest.mark.parametrize(
    ("layouts", "sentence"),
    [
        ("a dog", r"layouts is 'a dog': .* for a prompt alone, Layout\(prompt\)"),
        (["a dog"], r"layout 1 is 'a dog': .* for a prompt alone, Layout\(prompt\)"),
        ([CAT, {"prompt": "x"}], "layout 2 is .*: give a Layout; Layout.from_json makes"),
        ({"prompt": "x"}, "layouts is .*: give a Layout; Layout.from_json makes"),
        (None, r"layouts is None: give a Layout\(prompt, phrases, boxes\), or a list of them"),
        ([3], "layout 1 is 3: give a Layout"),
    ],
)
def test_a_value_that_is_not_a_layout_is_named_with_the_fix(layouts, sentence, pipe):
    for call in (pipe, pipe.encode):
        with pytest.raises(ValueError, match=sentence):
            call(layouts)


def test_one_layout_takes_one_seed(pipe):
    run = dict(num_steps=10, output="latents")
    expected = pipe([CAT], seeds=[7], **run)
    for seeds in (7, np.int64(7), np.array([7]), jnp.array([7])):
        np.testing.assert_array_equal(pipe(CAT, seeds=seeds, **run), expected)
    with pytest.raises(ValueError, match="seeds is 7: .* one per image; give a list"):
        pipe([CAT, CAT], seeds=7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.dtype("float32"), np.float32, "bfloat16"])
def test_dtypes_of_jax_and_numpy_are_read_by_their_names(dtype):
    name = Settings(dtype=dtype).dtype
    assert name is not None and name in str(dtype)
    made = Pipeline.from_model(tiny_model(**ONE_LEVEL), dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made.params)} == {name}
    for wrong in (jnp.float16, int, np.dtype("int32"), 3):
        with pytest.raises(ValueError, match="dtype .* must be one of float32, bfloat16"):
            Settings(dtype=wrong)


def test_arrays_of_jax_are_cast_and_placed():
    model = tiny_model(**ONE_LEVEL)
    on_device = Model(
        model.config, jax.tree.map(jnp.asarray, model.params), model.tokenizer_json, {}
    )
    devices = jax.devices()[:2]
    made = Pipeline.from_model(on_device, dtype="bfloat16", devices=devices)
    for leaf in jax.tree.leaves(made.params):
        assert leaf.dtype == jnp.bfloat16 and leaf.sharding.device_set == set(devices)
    # Already on the right device in the right dtype: used as is.
    again = Pipeline.from_model(
        Model(model.config, made.params, model.tokenizer_json, {}),
        dtype="bfloat16",
        devices=devices,
    )
    first = made.params["unet"]["conv_in"]["kernel"], again.params["unet"]["conv_in"]["kernel"]
    assert first[0].unsafe_buffer_pointer() == first[1].unsafe_buffer_pointer()


@pytest.mark.parametrize("devices", [1, "cpu", [], [0], [None]])
def test_invalid_devices_are_refused(devices):
    with pytest.raises(ValueError, match=r"give a list of JAX devices, such as jax.local_devices"):
        Pipeline.from_model(tiny_model(**ONE_LEVEL), devices=devices)


def test_the_same_device_twice_is_refused():
    with pytest.raises(ValueError, match="must be distinct"):
        choose_devices(jax.devices()[:1] * 2)


@pytest.mark.parametrize(("backend", "place"), [("cudnn", "GPU"), ("pallas", "TPU")])
def test_attention_that_the_platform_cannot_run_is_refused_at_once(backend, place):
    with pytest.raises(ValueError, match=f"'{backend}' runs only on {place}, but the devices are"):
        Pipeline.from_model(tiny_model(**ONE_LEVEL), attention=backend)
    check_backend(backend, {"GPU": "gpu", "TPU": "tpu"}[place])


def test_an_interval_that_holds_no_step_is_refused(pipe):
    with pytest.raises(ValueError, match=r"\[0.01, 0.04\], which contains none of the 20 steps"):
        pipe([CAT], guidance_interval=(0.01, 0.04), num_steps=20, guidance_scale=7.5)
    Settings(guidance_interval=(0.01, 0.04), num_steps=20, guidance_scale=1)  # there is no guidance
    Settings(guidance_interval=(0.01, 0.05), num_steps=20)  # the first step


def test_parts_of_the_pipeline_check_their_arguments(pipe):
    crowd = Layout("a crowd", ["a man"] * 31, [(0, 0, 0.5, 0.5)] * 31)
    with pytest.raises(ValueError, match="31 boxes, more than max_boxes=30"):
        pipe.encode([crowd])
    with pytest.raises(ValueError, match="there are no layouts to encode"):
        pipe.encode([])
    with pytest.raises(ValueError, match="latents of 0 images on 1 devices: pad to a multiple"):
        pipe.decode(jnp.zeros((0, *pipe.programs.latent_shape())))


def test_an_empty_list_gives_empty_results_of_the_documented_shapes(pipe):
    assert pipe([]) == []
    assert pipe([], output="latents").shape == (0, 8, 8, 4)
    assert pipe([], output="latents", height=32, width=16).shape == (0, 16, 8, 4)
    assert pipe([], output="numpy").shape == (0, 16, 16, 3)
    assert pipe.sweep([], gammas=[0, 1], output="numpy")[1.0].shape == (0, 16, 16, 3)


def test_overflow_is_never_silent(pipe):
    # Near float32's largest number (3.4e38): the first steps multiply it by more than 1.
    run: Any = dict(num_steps=10, latents=np.full((1, 8, 8, 4), 3.3e38, np.float32))
    for output in ("numpy", "latents"):
        with pytest.warns(UserWarning, match="image 1 holds NaN or infinity: .*lower guidance_sc"):
            made = pipe([CAT], output=output, **run)
        assert not np.isfinite(made).all()
    with pytest.raises(ValueError, match="image 1 holds NaN or infinity: .*lower guidance_scale"):
        pipe([CAT], **run)
    low = Pipeline.from_model(tiny_model(**ONE_LEVEL), dtype="bfloat16")
    with pytest.raises(ValueError, match="overflowed in bfloat16; try dtype='float32'"):
        low([CAT], **run)


def test_latents_may_be_numpys_jaxs_or_plain_lists(pipe):
    latents = np.random.default_rng(0).standard_normal((1, 8, 8, 4)).astype(np.float32)
    run = dict(num_steps=10, output="latents")
    expected = pipe([CAT], latents=latents, **run)
    for same in (jnp.asarray(latents), latents.tolist()):
        np.testing.assert_array_equal(pipe([CAT], latents=same, **run), expected)


def test_latents_of_nan_are_refused(pipe):
    latents = np.zeros((1, 8, 8, 4), np.float32)
    latents[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="latents hold NaN or infinity"):
        pipe([CAT], latents=latents)


def test_nan_in_the_weights_is_blamed_on_the_weights():
    model = tiny_model(**ONE_LEVEL)
    params = jax.tree.map(np.array, model.params)
    params["unet"]["conv_in"]["kernel"][0, 0, 0, 0] = np.nan
    broken = Pipeline.from_model(Model(model.config, params, model.tokenizer_json, {}))
    with pytest.raises(ValueError, match="so does the model's array unet/conv_in/kernel"):
        broken([CAT], num_steps=10)


def test_a_pipeline_and_what_it_works_with_print_in_a_few_lines(pipe):
    assert repr(pipe) == "Pipeline(model, 16x16, 0.42 M parameters, float32, 1 x cpu)"
    assert repr(tiny_model(**ONE_LEVEL)) == "Model(unknown, 0.42 M parameters, float32)"
    programs = pipe.programs
    plan = programs.plan(Settings(num_steps=4))
    conditioning = pipe.encode([CAT])
    prepared = programs.prepare(pipe.params, conditioning, plan.timesteps)
    state = programs.start(plan, Settings(), np.array([1], np.uint32))
    for value in (conditioning, conditioning.grounding, prepared, plan, state):
        assert repr(value).startswith(f"{type(value).__name__}(")
        assert len(repr(value)) < 1000
    assert "text=float32[1,77,12]" in repr(conditioning)


def test_copies_of_a_pipeline_are_the_pipeline_and_a_pickle_says_what_to_do(pipe):
    assert copy.copy(pipe) is pipe and copy.deepcopy({"pipe": pipe})["pipe"] is pipe
    with pytest.raises(TypeError, match="pass its name, and call Pipeline.load"):
        pickle.dumps(pipe)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(height=8_000_000_000), "height is 8000000000: image sides are at most 8192 pixels"),
        (dict(width=65536), "width is 65536: image sides are at most 8192 pixels"),
        (dict(max_boxes=10**9), "max_boxes is 1000000000: give a whole number from 1 to 1024"),
        (dict(guidance_scale=10**400), "guidance_scale is 1000.*which is not a number"),
        (dict(gamma=np.array([0.5, 0.5])), r"gamma is \[0.5, 0.5\], which has 2 parts"),
    ],
)
def test_settings_have_bounds_that_no_file_can_pass(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Settings(**settings)


def test_parts_of_gamma_and_of_the_interval_may_be_arrays():
    assert Settings(gamma=np.array([0.5, 0.25, 0.25])).gamma == (0.5, 0.25, 0.25)
    assert Settings(gamma=np.float32(0.5)).gamma == 0.5
    assert Settings(guidance_interval=jnp.array([0.0, 0.5])).guidance_interval == (0.0, 0.5)
    json.dumps(Settings(gamma=np.array([0.5, 0.25, 0.25])).to_json())


def test_the_layouts_of_benchmarks_are_in_words_that_the_built_in_model_knows():
    directory = built_in("emoji")
    assert directory is not None
    config = read_description(directory).config
    texts = Texts((directory / "tokenizer.json").read_text("utf-8"), config.text_encoder.tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts.ids(distinct_texts(bench_layouts(64)))


def test_settings_are_given_as_a_value_or_as_keywords_and_keywords_win(pipe):
    value = Settings(num_steps=10, gamma=0.5, wiring="sequential")
    run = dict(seeds=[3], output="latents")
    expected = pipe([CAT], num_steps=10, gamma=0.5, wiring="sequential", **run)
    np.testing.assert_array_equal(pipe([CAT], value, **run), expected)
    other = pipe([CAT], value, wiring="parallel", **run)
    np.testing.assert_array_equal(other, pipe([CAT], num_steps=10, gamma=0.5, **run))
    swept = pipe.sweep([CAT], value, gammas=[0.5], **run)
    np.testing.assert_array_equal(swept[0.5], expected)
    with pytest.raises(ValueError, match="settings is 'parallel': give a Settings"):
        pipe([CAT], "parallel")


def test_settings_of_another_dtype_are_refused(pipe):
    with pytest.raises(ValueError, match="have dtype bfloat16, but this pipeline uses float32"):
        pipe([CAT], Settings(dtype="bfloat16"))
    pipe([CAT], Settings(dtype="float32", num_steps=10))


def test_every_field_of_settings_is_a_keyword_of_a_call():
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert fields - {"dtype"} == set(SETTINGS_FIELDS)


def test_progress_true_shows_a_bar_over_all_steps_of_all_batches(pipe, capsys):
    pipe([CAT, DOG], num_steps=10, batch_size=1, progress=True, output="latents")
    assert "20/20" in capsys.readouterr().err
    pipe([CAT], num_steps=10, progress=False, output="latents")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mapper", ["vmap", None])
def test_a_mapper_that_does_not_exist_is_refused(mapper):
    with pytest.raises(ValueError, match="mapper .* must be one of shard_map, pmap"):
        Pipeline.from_model(tiny_model(**ONE_LEVEL), mapper=mapper)

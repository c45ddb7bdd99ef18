"""Attention guidance in a sampling loop: what it may change, and what it must not."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from reground_jax import Layout, Pipeline, Settings
from reground_jax.attention_guidance import (
    LMD,
    METHODS,
    AttentionRefocusing,
    BoxDiff,
    LayoutGuidance,
    attention_guidance,
    guidance_text,
)
from reground_jax.config import ModelConfig
from reground_jax.sampling.attention_guidance.boxes import padded_size
from reground_jax.sampling.attention_guidance.guide import watched
from reground_jax.sampling.solvers import SOLVERS
from reground_jax.settings import SOLVER_NAMES
from tests.models import tiny_model

pytestmark = pytest.mark.usefixtures("fusions_of_users")

LAYOUTS = [
    Layout("a cat and a dog", ["a cat", "a dog"], [(0, 0, 0.5, 1), (0.5, 0.25, 1, 1)]),
    Layout("a dog", ["a dog"], [(0.1, 0.1, 0.6, 0.7)]),
    Layout("a tree"),
]
STRONG = {  # on random weights, attention maps are flat, and the methods' own steps too small
    "boxdiff": BoxDiff(strength=2000, refine=True, most=3, thresholds=((0, 0.5),)),
    "attention_refocusing": AttentionRefocusing(strength=1000),
    "layout_guidance": LayoutGuidance(strength=3000, until=1),
    "lmd": LMD(strength=1000, threshold=0.01),
}
FEW = {"num_steps": 4, "guidance_scale": 4.0, "solver": "ddim"}


@functools.cache
def pipe() -> Pipeline:
    return Pipeline.from_model(tiny_model())


def latents(layouts=LAYOUTS, pipeline=None, **fields) -> np.ndarray:
    """Always three samples, which share their programs among these tests."""
    assert len(layouts) == 3
    options: dict[str, Any] = FEW | {"seeds": [0, 1, 2]} | fields
    return (pipeline or pipe())(layouts, output="latents", **options)


def test_boxes_and_tokens_have_few_sizes():
    assert [padded_size(n) for n in (0, 1, 32, 33, 128, 129)] == [32, 32, 32, 128, 128, 512]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_moves_what_has_boxes_and_nothing_else(name):
    without, found = latents(), latents(attention_guidance=STRONG[name])
    assert np.isfinite(found).all()
    moved = np.abs(found - without).max((1, 2, 3))
    assert (moved[:2] > 1e-3).all() and moved[2] == 0
    nothing = [LAYOUTS[2]] * 3  # a batch of layouts without boxes
    guided = latents(nothing, attention_guidance=STRONG[name])
    np.testing.assert_array_equal(guided, latents(nothing))


@pytest.mark.parametrize("name", METHODS)
def test_a_samples_neighbors_do_not_change_it(name):
    both = latents(attention_guidance=STRONG[name])
    for row, layout in enumerate(LAYOUTS):
        alone: list[Layout] = [LAYOUTS[2]] * 3
        alone[row] = layout
        found = latents(alone, attention_guidance=STRONG[name])
        np.testing.assert_allclose(found[row], both[row], atol=2e-5 * np.abs(both).max())


@pytest.mark.parametrize("name", METHODS)
def test_no_size_is_no_guidance_bit_for_bit(name):
    """Of Attention-Refocusing, the loss has size 0."""
    still = dataclasses.replace(STRONG[name], strength=0)
    np.testing.assert_array_equal(latents(attention_guidance=still), latents())


@pytest.mark.parametrize("name", METHODS)
def test_segments_give_what_the_whole_gives(name):
    settings = Settings(attention_guidance=STRONG[name], **FEW)
    whole = pipe().session(LAYOUTS, settings).finish()
    session = pipe().session(LAYOUTS, settings)
    for stop in (1, 2, 4):
        session.run(stop)
    np.testing.assert_array_equal(session.latents, whole)


@pytest.mark.parametrize("name", METHODS)
def test_boxes_of_any_size_give_numbers(name):
    for sides in ((1.0, 0.3, 0.05), (1e-3, 1e-7, 0.0)):
        layouts = [
            Layout("a cat", ["a cat"], [(0.97 - side if side < 0.9 else 0, 0, 1, side)])
            for side in sides
        ]
        assert np.isfinite(latents(layouts, attention_guidance=STRONG[name])).all()


def test_other_numbers_boxes_and_prompts_compile_nothing():
    def sizes():
        return {key: run._cache_size() for key, run in pipe().programs._compiled.items()}

    latents(attention_guidance=BoxDiff(), gamma=0.5)
    compiled = sizes()
    others = [
        Layout("the dog by a cat", ["dog", "cat", "cat"], [(0, 0, 0.3, 0.2)] * 3),
        Layout(""),
        Layout("a bus " * 9, ["a bus " * 9], [(0, 0, 1, 1)]),
    ]
    method = BoxDiff(strength=3, until=1, share=0.5, reach=2, sigma=1.0)
    latents(others, attention_guidance=method, guidance_scale=2.0, gamma=0.25)
    assert sizes() == compiled


@pytest.mark.parametrize(
    "options",
    [
        # Euler's latents are 1 / input_scale times as large.
        ({"solver": "euler"}, {"solver": "dpmpp_2m"}),
        # PLMS evaluates its first step twice.
        ({"solver": "plms"}, {"solver": "ddim"}),
        # Outside of the interval of guidance, there is no unconditional branch.
        ({"guidance_interval": (0.5, 1)}, {}),
    ],
    ids=lambda options: "-".join(options[0]),
)
def test_a_step_has_the_same_updates(options, monkeypatch):
    """These solvers leave the latents as the updates made them."""
    method, moves = LayoutGuidance(strength=300, until=1, most=2), []
    for name in SOLVER_NAMES:
        still = dataclasses.replace(SOLVERS[name], update=lambda state, *_: state)
        monkeypatch.setitem(SOLVERS, name, still)
    pipeline = Pipeline.from_model(tiny_model())
    for fields in options:
        settings = Settings(attention_guidance=method, **FEW | fields)
        scale = pipeline.programs.plan(settings).input_scale[0]
        session = pipeline.session(LAYOUTS, settings)
        before = np.array(session.latents)  # a copy: the session reuses the memory
        moves.append(scale * (np.array(session.run(1).latents) - before))
    largest = np.abs(moves[1]).max()
    assert largest > 0.1
    np.testing.assert_allclose(moves[0], moves[1], atol=0.02 * largest)  # Euler starts 0.2 % lower


def test_a_sweep_shares_steps_and_gives_what_calls_give():
    options = FEW | {
        "seeds": [0, 1, 2],
        "output": "latents",
        "attention_guidance": BoxDiff(strength=200),
    }
    found = pipe().sweep(LAYOUTS, gammas=[0, 0.5, 1], **options)
    for gamma, swept in found.items():
        np.testing.assert_array_equal(swept, pipe()(LAYOUTS, gamma=gamma, **options))


def test_words_that_are_missing_are_an_error_before_any_compile():
    pipeline = Pipeline.from_model(tiny_model())
    layout = Layout("a cat", ["a dog"], [(0, 0, 0.5, 1)])
    with pytest.raises(ValueError, match="'a dog', is not in the prompt"):
        latents([layout] * 3, pipeline, attention_guidance="boxdiff")
    assert not pipeline.programs._compiled
    skipped = latents([layout] * 3, attention_guidance="boxdiff:missing=skip,strength=2000")
    np.testing.assert_array_equal(skipped, latents([layout] * 3))
    with pytest.raises(ValueError, match="reads the attention to the text"):
        Settings(wiring="no_text", attention_guidance="boxdiff")


def test_a_session_needs_the_words():
    conditioning = pipe().encode(LAYOUTS)
    from reground_jax.session import Session

    with pytest.raises(ValueError, match="encoded without its words"):
        Session(
            pipe().programs, pipe().params, conditioning, Settings(attention_guidance="lmd"),
            np.zeros(3, np.uint32),
        )  # fmt: skip


def test_the_watched_level_is_the_deepest_outside_of_the_middle():
    config = ModelConfig().unet  # SD1.x at 512 px: 16 x 16
    names = {str(place).rpartition("/block")[0] for place in watched(BoxDiff, config)}
    up = {f"up_1/transformer_{i}" for i in range(3)}
    assert names == {f"down_2/transformer_{i}" for i in range(2)} | up
    names = {str(place).rpartition("/block")[0] for place in watched(LMD, config)}
    assert names == up | {"mid_0/transformer_0"}
    kinds = {place.attention for place in watched(AttentionRefocusing, config)}
    assert kinds == {"self", "fuser", "text"}
    everywhere = dataclasses.replace(config, down_attention=(True,) * 4, up_attention=(True,) * 4)
    assert {p.level for p in watched(BoxDiff, everywhere)} == {"down_3", "up_0"}


@pytest.mark.parametrize("method", [*STRONG.values(), *(kind() for kind in METHODS.values())])
def test_a_method_goes_through_json_and_the_command_line(method):
    settings = Settings(attention_guidance=method)
    assert Settings.from_json(settings.to_json()) == settings and hash(settings)
    plain = dataclasses.replace(method, strength=7, missing="skip")
    simple = type(method)(strength=7, missing="skip")
    if plain == simple:
        assert attention_guidance(guidance_text(plain)) == plain


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("boxdif", "did you mean 'boxdiff'"),
        ("boxdiff:strenght=1", "did you mean 'strength'"),
        ({"method": "boxdiff", "until": 1.5}, "until of boxdiff is 1.5: give a fraction"),
        ({"method": "boxdiff", "strength": -1}, "give a number of at least 0"),
        ({"method": "boxdiff", "refine": 2}, "give true or false"),
        ({"method": "boxdiff", "most": 1000}, "from 0 to 100"),
        ({"method": "boxdiff", "thresholds": [[0.5, 1], [0.2, 1]]}, "its fractions must rise"),
        ({"method": "lmd", "schedule": [[0.5]]}, "give rows of 2 numbers"),
        ({"strength": 1}, "give the name of a method"),
        (3, "give the name of a method"),
    ],
)
def test_anything_else_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        Settings(attention_guidance=value)


@pytest.mark.slow
def test_half_precision_follows_single_precision():
    """Maps, losses and latents are float32, so updates differ by what the network rounds."""
    half = Pipeline.from_model(tiny_model(), dtype="bfloat16")
    method = STRONG["boxdiff"]
    single, found = (
        latents(attention_guidance=method),
        latents(pipeline=half, attention_guidance=method),
    )
    scale = np.abs(single).max()
    assert found.dtype == np.float32 and np.abs(found - single).max() < 0.2 * scale
    assert jax.default_backend() == "cpu"

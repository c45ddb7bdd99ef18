"""Settings: validation, comparison, and the JSON round trip."""

import json

import numpy as np
import pytest

from reground_jax.basics.fields import check_name
from reground_jax.settings import SOLVER_NAMES, WIRINGS, Settings, checked_seeds


def test_defaults_are_the_papers_settings():
    settings = Settings()
    assert (settings.wiring, settings.gamma) == ("parallel", 1.0)
    # The original GLIGEN script's sampler, steps and guidance.
    assert (settings.solver, settings.num_steps, settings.guidance_scale) == ("plms", 50, 7.5)
    assert settings.max_boxes == 30  # as trained


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(gamma=(0.3, 0.0, 0.7), height=512, width=640, dtype="bfloat16"),
        Settings(guidance_interval=(0.2, 0.7)),
        Settings(wiring="sequential", solver="ddim", eta=0.5, guidance_scale=1, num_steps=20),
    ],
)
def test_settings_come_back_equal_from_json(settings: Settings):
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_whole_numbers_lists_and_numpy_numbers_are_stored_as_plain_values():
    settings = Settings(gamma=[1, 0, 0], guidance_scale=5, num_steps=np.int64(10))  # type: ignore
    assert settings == Settings(gamma=(1.0, 0.0, 0.0), guidance_scale=5.0, num_steps=10)
    assert type(settings.num_steps) is int and type(settings.guidance_scale) is float
    assert hash(settings) == hash(Settings(gamma=(1, 0, 0), guidance_scale=5, num_steps=10))


def test_three_parts_may_miss_one_by_rounding():
    parts = on, decay, off = 0.7, 0.2, 0.1
    assert on + decay + off != 1  # 0.9999999999999999: GLIGEN's own assertion fails on it
    assert Settings(gamma=parts).gamma == parts


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"wiring": "paralel"}, "wiring 'paralel' is unknown: did you mean 'parallel'? It must be"),
        ({"wiring": "Parallel"}, "did you mean 'parallel'"),
        ({"wiring": "x"}, "wiring 'x' is unknown: it must be one of sequential, parallel, no_text"),
        ({"solver": "dpm_2m"}, "did you mean 'dpmpp_2m'"),
        ({"solver": None}, "solver None is unknown: it must be one of plms"),
        ({"dtype": "bf16"}, "dtype 'bf16' is unknown: did you mean 'bfloat16'"),
        ({"gamma": 1.2}, "gamma is 1.2: give a fraction of the steps in 0..1, or three parts"),
        ({"gamma": -0.1}, "gamma is -0.1"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"gamma": "0.3"}, "gamma is '0.3', which is not a number"),
        ({"gamma": (0.3, 0.7)}, "gamma is [0.3, 0.7], which has 2 parts"),
        ({"gamma": (0.3, 0.0, 0.6)}, "gamma is [0.3, 0.0, 0.6], which adds up to 0.9"),
        ({"gamma": (1.3, 0.0, -0.3)}, "which has a negative part"),
        ({"num_steps": 0}, "num_steps is 0: give a whole number from 1 to 1000"),
        ({"num_steps": 1001}, "num_steps is 1001"),
        ({"num_steps": 50.0}, "num_steps is 50.0, which is not a whole number"),
        ({"num_steps": True}, "num_steps is True"),
        ({"guidance_scale": -1}, "guidance_scale is -1.0: give a finite number, at least 0"),
        ({"guidance_interval": (0.5, 0.5)}, "guidance_interval is [0.5, 0.5]: give two fractions"),
        ({"guidance_interval": (0, 1.5)}, "guidance_interval is [0, 1.5]"),
        ({"guidance_interval": 0.5}, "guidance_interval is 0.5: give two fractions"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"eta": 0.5}, "eta is 0.5, but only solver 'ddim' takes eta: use it, or set eta=0"),
        ({"eta": 1.5, "solver": "ddim"}, "eta is 1.5: give a number in 0..1"),
        ({"height": 500}, "height is 500: image sides are multiples of 8 pixels; try 496 or 504"),
        ({"width": 4}, "width is 4: image sides are multiples of 8 pixels; try 8"),
        ({"width": -8}, "width is -8: image sides are multiples of 8 pixels; try 8"),
        ({"width": "512"}, "width is '512', which is not a whole number"),
        ({"max_boxes": 0}, "max_boxes is 0: give a whole number from 1 to 1024"),
    ],
)
def test_a_bad_value_is_one_sentence_with_value_rule_and_way_out(changes: dict, sentence: str):
    with pytest.raises(ValueError) as error:
        Settings(**changes)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_field_in_json_suggests_the_nearest():
    with pytest.raises(ValueError, match="'guidance' is unknown: did you mean 'guidance_scale'"):
        Settings.from_json({"guidance": 5})
    with pytest.raises(ValueError, match="expected a JSON object"):
        Settings.from_json([])


def test_diff_lists_exactly_the_fields_that_differ():
    a, b = Settings(), Settings(wiring="sequential", gamma=(0.3, 0.0, 0.7))
    assert a.diff(b) == {"wiring": ("parallel", "sequential"), "gamma": (1.0, [0.3, 0.0, 0.7])}
    assert a.diff(a) == {}


def test_every_wiring_and_solver_name_is_accepted():
    for wiring in WIRINGS:
        check_name("wiring", Settings(wiring=wiring).wiring, WIRINGS)
    for solver in SOLVER_NAMES:
        assert Settings(solver=solver).solver == solver


@pytest.mark.parametrize(
    "seeds", [[0, 7], (0, np.int64(7)), np.array([0, 7], np.uint32), range(0, 8, 7)]
)
def test_seeds_become_python_integers(seeds):
    assert checked_seeds(seeds) == [0, 7]
    assert {type(seed) for seed in checked_seeds(seeds)} == {int}


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "7", None])
def test_a_seed_that_is_not_an_integer_of_32_bits_is_refused(seed):
    with pytest.raises(
        ValueError, match="seed 2 of 2 is .*: a seed is an integer from 0 to 4294967295"
    ):
        checked_seeds([3, seed])

"""The amounts of the wiring "coupled": how they are written, and the table they become."""

import numpy as np
import pytest

from reground_jax.amounts import amount_text, checked_amount, read_amount
from reground_jax.bench.presets import preset_config
from reground_jax.sampling.coupling import amount_table, block_places
from reground_jax.settings import Settings
from tests.models import tiny_model

SD14 = preset_config("sd14").unet
FORMS = [
    (0.5, "0.5"),
    ({"down": 1.0, "mid": 0.0}, "down=1,mid=0"),
    ([[0.25, 1.0], [0.75, {"up": 0.5}]], "0.25:1/0.75:up=0.5"),
]


def table(num_steps: int = 10, **fields) -> np.ndarray:
    made = amount_table(Settings(wiring="coupled", num_steps=num_steps, **fields), SD14)
    assert made is not None and made.shape == (num_steps, 16, 3) and made.dtype == np.float32
    return made


@pytest.mark.parametrize(("value", "text"), FORMS)
def test_every_form_goes_through_json_and_the_command_line(value, text):
    settings = Settings(wiring="coupled", coupling=value, text_weight=value)
    assert settings.to_json()["coupling"] == value
    assert Settings.from_json(settings.to_json()) == settings and hash(settings)
    assert checked_amount("coupling", read_amount(text)) == settings.coupling
    assert amount_text(settings.coupling) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("half", "coupling is 'half', which is not a number: give a number, numbers by place"),
        ({}, "names no place"),
        ({"down": "x"}, "coupling of down is 'x'"),
        ([[0.5, 1.0], [0.4, 0.0]], "must be above 0 and add up to 1"),
        ([[0.5, 1.0], 0.5], "give a number, numbers by place"),
        ([], "coupling is"),
        (float("nan"), "coupling is nan"),
    ],
)
def test_anything_else_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        Settings(wiring="coupled", coupling=value)


def test_other_wirings_refuse_what_they_would_not_read():
    with pytest.raises(ValueError, match="text_weight is 0.5, but the wiring is 'parallel'"):
        Settings(text_weight=0.5)
    coupled = Settings(wiring="coupled", coupling=0.5)
    assert coupled.with_method("gligen") == Settings(wiring="sequential")
    assert coupled.with_method("coupled") == coupled
    assert amount_table(Settings(), SD14) is None


def test_a_number_by_place_goes_to_the_blocks_of_that_place():
    places = block_places(SD14)  # 2 at 64, 32 and 16, one at 8, 3 at 16, 32 and 64
    assert places == [
        *([("down", side) for side in ("64", "64", "32", "32", "16", "16")]),
        ("mid", "8"),
        *([("up", side) for side in ("16",) * 3 + ("32",) * 3 + ("64",) * 3]),
    ]  # fmt: skip
    by_part = table(coupling={"down": 0.25, "mid": 0.5})[0, :, 0]
    np.testing.assert_array_equal(by_part, [0.25] * 6 + [0.5] + [1] * 9)
    by_side = table(grounding_weight={"64": 0, "8": 3})[0, :, 1]
    np.testing.assert_array_equal(by_side, [0] * 2 + [1] * 4 + [3] + [1] * 6 + [0] * 3)


def test_pieces_of_the_steps_are_cut_as_gamma_is():
    made = table(coupling=[[0.1, 2], [0.2, 3], [0.7, {"mid": 4}]])
    np.testing.assert_array_equal(made[:, 6, 0], [2, 3, 3] + [4] * 7)  # .1 + .2 is above .3
    np.testing.assert_array_equal(made[:, 0, 0], [2, 3, 3] + [1] * 7)
    assert (made[:, :, 1:] == 1).all()
    short = table(num_steps=3, coupling=[[0.1, 2], [0.9, 3]])
    np.testing.assert_array_equal(short[:, 0, 0], [3, 3, 3])


def test_a_place_that_the_model_lacks_is_refused_before_any_compile():
    with pytest.raises(ValueError, match="place of coupling 'middle' is unknown: .*mid"):
        table(coupling={"middle": 0})
    with pytest.raises(ValueError, match="names some blocks twice, by 'down' and by '64'"):
        table(coupling={"down": 0, "64": 1})
    from reground_jax import Layout, Pipeline

    pipe = Pipeline.from_model(tiny_model())
    with pytest.raises(ValueError, match="place of text_weight '64' is unknown"):
        pipe([Layout("a cat")], wiring="coupled", text_weight={"64": 0})
    assert not pipe.programs._compiled

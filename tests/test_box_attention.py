"""The box-attention loss, on hand-made boxes and attention with known answers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.devices import WHOLE, over_devices
from reground_jax.networks.grounding.text import Grounding
from reground_jax.regions import inside_boxes, level_size
from reground_jax.training.box_attention import box_attention_loss, mean_box_attention_loss


def grounding(boxes) -> Grounding:
    """One sample; a box of None is an empty slot."""
    filled = [box or (0, 0, 1, 1) for box in boxes]
    mask = [[0.0 if box is None else 1.0 for box in boxes]]
    return Grounding(
        np.array([filled], np.float32), np.zeros((1, len(boxes), 3), np.float32),
        np.array(mask, np.float32),
    )  # fmt: skip


def on_one_device(function, *arguments):
    """Runs `function` on one device, since the losses sum over devices."""
    specs = tuple(WHOLE for _ in arguments)
    return over_devices(function, specs, WHOLE, devices=jax.devices()[:1])(*arguments)


def test_cells_are_inside_by_their_center_and_rows_come_first():
    # 2 rows, 4 columns; the column centers are at 1/8, 3/8, 5/8, 7/8.
    tokens = grounding([(0.2, 0.0, 0.7, 0.5), (0.0, 0.5, 1.0, 1.0), None])
    inside = np.asarray(inside_boxes(tokens.boxes, tokens.mask, 2, 4))[0]
    assert inside[:, 0].tolist() == [False, True, True, False] + [False] * 4
    assert inside[:, 1].tolist() == [False] * 4 + [True] * 4
    assert not inside[:, 2].any()  # an empty slot covers nothing, whatever its box


def test_the_loss_matches_its_docstring():
    tokens = grounding([(0, 0, 0.5, 1), (0.5, 0, 1, 1), None])
    inside, mask = inside_boxes(tokens.boxes, tokens.mask, 1, 2), jnp.asarray(tokens.mask)
    right = jnp.array([[[0.3, 0.0, 0.7], [0.0, 0.5, 0.1]]])
    assert float(on_one_device(box_attention_loss, right, inside, mask)) == pytest.approx(
        0, abs=1e-5
    )
    # Cell 1 has a tenth of ENOUGH on its box; cell 2 gives half of its attention to box 1.
    wrong = jnp.array([[[0.03, 0.0, 0.9], [0.5, 0.3, 0.2]]])
    expected = math.log(10) / 2 - math.log(0.5) / 2
    assert float(on_one_device(box_attention_loss, wrong, inside, mask)) == pytest.approx(
        expected, rel=1e-3
    )


def test_the_loss_of_several_maps_is_their_mean_at_the_size_of_each():
    rng = np.random.default_rng(0)
    tokens = grounding([(0, 0, 0.5, 1), None])
    logits = [rng.standard_normal((1, 2, cells, cells + 2)) for cells in (16, 4)]
    maps = [jax.nn.softmax(jnp.asarray(array, jnp.float32)) for array in logits]

    def alone(attention, side):
        inside = inside_boxes(tokens.boxes, tokens.mask, side, side)
        mask = jnp.asarray(tokens.mask)
        return box_attention_loss(attention.mean(1)[..., side * side :], inside, mask)

    parts = [
        on_one_device(functools.partial(alone, side=side), attention)
        for attention, side in zip(maps, (4, 2), strict=True)
    ]
    whole = on_one_device(lambda maps: mean_box_attention_loss(maps, tokens, 4, 4), maps)
    assert float(whole) == pytest.approx(np.mean(parts), rel=1e-6) and parts[0] != parts[1]


def test_levels_halve_upwards():
    assert level_size(65, 64, 33 * 32) == (33, 32)

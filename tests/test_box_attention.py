"""The box-attention loss, on hand-made boxes and attention with known answers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.devices import WHOLE, over_devices
from reground_jax.networks.attention import plain
from reground_jax.networks.grounding.text import Grounding
from reground_jax.regions import inside_boxes, level_size
from reground_jax.training.box_attention import Watch, box_attention_loss


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


def test_a_watch_computes_the_same_and_records_only_fusers():
    rng = np.random.default_rng(0)
    tokens = grounding([(0, 0, 1, 1), None])

    def keys(count: int):
        return jnp.asarray(rng.standard_normal((1, count, 2, 3)), jnp.float32)

    # Self-attention, text, and a fuser one level down: 2x2 cells and two tokens.
    calls = [(keys(cells), keys(others)) for cells, others in ((16, 16), (16, 5), (4, 4), (4, 6))]

    def watched(calls):
        watch = Watch(plain, tokens, 4, 4)
        return [watch(q, k, k) for q, k in calls], watch.losses

    outputs, losses = on_one_device(watched, calls)
    for output, (q, k) in zip(outputs, calls, strict=True):
        np.testing.assert_allclose(output, plain(q, k, k), atol=1e-6)  # compiled or not
    assert len(losses) == 1 and float(losses[0]) > 0


def test_levels_halve_upwards():
    assert level_size(65, 64, 33 * 32) == (33, 32)

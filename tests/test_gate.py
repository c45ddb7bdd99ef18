"""Scheduled sampling: how many steps are grounded, and how strongly."""

import numpy as np
import pytest

from reground_jax.sampling.gate import gate_table, grounded_steps


@pytest.mark.parametrize(
    "gamma, num_steps, count",
    [
        (0.53, 100, 53),  # float32 says 52
        (0.58, 50, 28),  # Python floats say 28.999..., float32 says 29
        (0.59, 100, 59),  # float32 says 58
        (0.3, 50, 15),  # the paper's and GLIGEN's own setting
        (0.19, 5, 0),  # int() rounds down
        (0, 50, 0),
        (1, 50, 50),
    ],
)
def test_gamma_grounds_the_first_steps_counted_in_python_floats(gamma, num_steps, count):
    table = gate_table(gamma, num_steps)
    np.testing.assert_array_equal(table, [1] * count + [0] * (num_steps - count))
    assert table.dtype == np.float32
    assert grounded_steps(table) == count


def test_three_parts_are_on_then_a_linear_decay_that_ends_at_zero_then_off():
    # 30% of 20 steps on, 20% decaying from 1 - 1/4 in steps of 1/4, the rest off.
    table = gate_table((0.3, 0.2, 0.5), 20)
    np.testing.assert_array_equal(table, [1] * 6 + [0.75, 0.5, 0.25, 0] + [0] * 10)
    assert grounded_steps(table) == 9  # the last decaying gate is already 0


@pytest.mark.parametrize("num_steps", [1, 10, 49, 50])  # 49: arange(0, 1, 1 / 49) has 50 entries
def test_a_table_has_one_gate_per_step_and_a_full_decay_ends_at_zero(num_steps):
    table = gate_table((0.0, 1.0, 0.0), num_steps)
    assert table.shape == (num_steps,)
    assert table[-1] == 0
    # The first decaying gate is 1 - 1/n, not 1.
    assert table[0] == np.float32((num_steps - 1) / num_steps)


def test_parts_need_not_add_up_to_one_exactly():
    assert 0.7 + 0.2 + 0.1 != 1  # the trap
    table = gate_table((0.7, 0.2, 0.1), 10)
    np.testing.assert_array_equal(table, [1] * 7 + [0.5, 0, 0])


def test_no_decay_equals_a_plain_gamma():
    np.testing.assert_array_equal(gate_table((0.3, 0.0, 0.7), 50), gate_table(0.3, 50))


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan"), (0.5, 0.5), (1.2, -0.2, 0.0)])
def test_a_share_outside_zero_to_one_is_refused(gamma):
    with pytest.raises(ValueError, match="(is|of gamma) .*: give a fraction of the steps in 0..1"):
        gate_table(gamma, 10)


def test_three_parts_that_do_not_add_up_to_one_are_refused():
    with pytest.raises(ValueError, match="adds up to 0.9: .* that add up to 1"):
        gate_table((0.3, 0.3, 0.3), 10)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps is 0"):
        gate_table(1.0, 0)

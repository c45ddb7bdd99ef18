"""Noise depends on the seed of its own image and on nothing else."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.sampling import noise

SHAPE = (2, 3, 4)  # H, W, C: small, all different
SEEDS = np.array([0, 7, 2**32 - 1], np.uint32)  # both ends of the range
# Drawn with jax 0.10.2. The bits are exact; the map to normals may round differently elsewhere.
GOLDEN_INITIAL = [[-0.5747802, 0.7998366], [-0.8820897, 0.6902043], [0.8515176, -0.2158344]]
GOLDEN_ETA_3 = [[0.1463018, -1.4924442], [0.7060139, 1.0495465], [0.7084932, -0.0704610]]
GOLDEN_TOLERANCE = 1e-5


def test_noise_has_the_golden_values():
    initial = noise.initial_noise(SEEDS, SHAPE)
    assert (initial.shape, initial.dtype) == ((3, *SHAPE), jnp.float32)
    np.testing.assert_allclose(initial[:, 0, 0, :2], GOLDEN_INITIAL, atol=GOLDEN_TOLERANCE)
    eta = noise.step_noise(SEEDS, SHAPE, noise.FRESH, 3)
    np.testing.assert_allclose(eta[:, 1, 2, 2:], GOLDEN_ETA_3, atol=GOLDEN_TOLERANCE)


def test_an_image_has_the_same_noise_alone_in_any_batch_and_in_any_order():
    batch = noise.initial_noise(SEEDS, SHAPE)
    np.testing.assert_array_equal(noise.initial_noise(SEEDS[::-1].copy(), SHAPE), batch[::-1])
    for i in range(len(SEEDS)):
        np.testing.assert_array_equal(noise.initial_noise(SEEDS[i : i + 1], SHAPE)[0], batch[i])


def test_traced_seeds_and_steps_give_the_same_noise():
    draw = jax.jit(lambda seeds, step: noise.step_noise(seeds, SHAPE, noise.INPAINT, step))
    np.testing.assert_array_equal(draw(SEEDS, 5), noise.step_noise(SEEDS, SHAPE, noise.INPAINT, 5))


def test_every_kind_step_and_seed_has_noise_of_its_own():
    kinds = [noise.INITIAL, noise.FRESH, noise.INPAINT, noise.VAE]
    assert len(set(kinds)) == 4
    draws = [noise.step_noise(SEEDS, SHAPE, kind, step) for kind in kinds for step in (0, 1)]
    values = np.stack(draws).reshape(-1, *SHAPE)
    # No draw shares a number with another: 4 kinds x 2 steps x 3 seeds of 24 numbers each.
    assert len(np.unique(values)) == values.size


def test_noise_is_unit_normal():
    x = np.asarray(noise.initial_noise(SEEDS, (64, 64, 4)))
    # 49152 numbers: the standard error is 0.0045 of the mean, 0.0032 of the deviation.
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.015


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_THREEFRY_PARTITIONABLE": "0"},
        {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
        {"JAX_ENABLE_X64": "1"},
    ],
    ids=lambda e: next(iter(e)),
)
def test_jax_settings_in_the_environment_do_not_change_noise(environment):
    code = f"""
import sys, jax, numpy as np
from reground_jax.sampling import noise
seeds = np.array({SEEDS.tolist()}, np.uint32)
draw = lambda s: noise.initial_noise(s, {SHAPE})
for x in (draw(seeds), jax.jit(draw)(seeds), noise.step_noise(seeds, {SHAPE}, 1, 3)):
    sys.stdout.buffer.write(np.asarray(x).tobytes())
"""
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    initial = np.asarray(noise.initial_noise(SEEDS, SHAPE)).tobytes()
    assert out == initial * 2 + np.asarray(noise.step_noise(SEEDS, SHAPE, 1, 3)).tobytes()

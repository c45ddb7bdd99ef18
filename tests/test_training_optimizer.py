"""Kernels of one shape are stacked for Muon, which changes nothing but the size of the program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from reground_jax.training.optimizer import optimizer, stack, unstack
from reground_jax.training.recipe import Recipe
from tests.reference import relative_error

SHAPES = {
    "a/conv/kernel": (3, 3, 4, 8), "b/conv/kernel": (3, 3, 4, 8), "a/dense/kernel": (36, 8),
    "b/dense/kernel": (8, 36), "c/dense/kernel": (8, 36), "a/dense/bias": (8,), "b/scale": (36,),
}  # fmt: skip
RECIPE = Recipe(
    num_steps=10, batch_size=1, optimizer="muon", learning_rate=0.1, warmup_steps=0,
    weight_decay=0.1, decay="constant", clip_norm=1e9,
)  # fmt: skip


def random(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in SHAPES.items()}


def matrices(params):
    def numbers(name, leaf):
        if not name.endswith("kernel"):
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return {name: numbers(name, leaf) for name, leaf in params.items()}


def test_stacked_muon_is_muon():
    theirs = muon(
        RECIPE.learning_rate, weight_decay=RECIPE.weight_decay, adam_b2=RECIPE.beta2,
        muon_weight_dimension_numbers=matrices, consistent_rms=0.2,  # type: ignore[arg-type]
    )  # fmt: skip
    results = []
    for rule in (optimizer(RECIPE), theirs):
        params = random(0)
        state = rule.init(params)
        for step in range(3):
            updates, state = rule.update(random(1 + step), state, params)
            params = optax.apply_updates(params, updates)
        results.append(params)
    for name in SHAPES:
        assert relative_error(*(params[name] for params in results)) < 1e-5, name


def test_one_stack_for_each_shape_as_a_matrix():
    leaves = random(0)
    stacked = stack(leaves)
    assert {n: leaf.shape for n, leaf in stacked.items()} == {
        "matrices 36 8": (3, 36, 8), "matrices 8 36": (2, 8, 36),
        "a/dense/bias": (8,), "b/scale": (36,),
    }  # fmt: skip
    back = unstack(stacked, leaves)
    assert list(back) == list(leaves)
    assert all((back[name] == leaf).all() for name, leaf in leaves.items())

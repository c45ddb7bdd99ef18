"""What training stores: recomputed blocks and narrow frozen weights change memory, not results."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.devices import SPLIT, WHOLE, over_devices
from reground_jax.model import random_params, read_model
from reground_jax.networks import recompute
from reground_jax.networks.attention import plain
from reground_jax.networks.recompute import blockwise_attention, query_block
from reground_jax.storage.checkpoint import flatten
from reground_jax.training.config import StageConfig
from reground_jax.training.dry_run import batch_shapes
from reground_jax.training.opening import open_stage, stage_terms
from reground_jax.training.sources import Data
from reground_jax.training.stages import STAGES, parts_of, stage_loss
from reground_jax.training.state import narrowed
from reground_jax.training.trainer import averaged_gradients
from tests.training import SIZE, TINY, Squares, tiny_recipe

CONFIG = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, grounding="text"))


def batch_of(kind: str, size: int = 2):
    """Random arrays in the shapes of a batch."""
    rng = np.random.default_rng(5)

    def fill(shape):
        if shape.dtype == jnp.uint8:
            return rng.integers(0, 256, shape.shape, np.uint8)
        if shape.dtype == jnp.int32:
            return rng.integers(0, 500, shape.shape).astype(np.int32)
        return rng.random(shape.shape).astype(np.float32)

    batch = jax.tree.map(fill, batch_shapes(kind, CONFIG, size, SIZE))
    return batch._replace(position=np.arange(size, dtype=np.int32))


def gradients(kind: str, narrow: bool = True, **fields):
    """Gradients and metrics of a step, with weights that are not zero."""
    config = StageConfig(source={}, recipe=tiny_recipe(batch_size=2), **fields)
    leaves = dict(random_params(CONFIG, 0))
    trained, frozen, _ = parts_of(kind, config, leaves)
    if not narrow:
        frozen = {name: leaves[name] for name in frozen}
    loss = stage_loss(kind, config, stage_terms(kind, config), CONFIG, "cpu")
    run = over_devices(
        lambda p, f, b: averaged_gradients(loss, p, f, b),
        (WHOLE, WHOLE, SPLIT), WHOLE, devices=jax.devices()[:1],
    )  # fmt: skip
    return run(trained, frozen, batch_of(kind))


@pytest.mark.parametrize(
    "kind",
    ["grounding", *(pytest.param(k, marks=pytest.mark.slow) for k in ("text_to_image", "decoder"))],
)
def test_recomputing_changes_no_gradient_beyond_rounding(kind, monkeypatch):
    monkeypatch.setattr(recompute, "LOGITS", 64 * 40)  # so that even these maps have blocks
    (stored, metrics), (again, others) = (
        gradients(kind, wiring="parallel", remat=remat) for remat in ("none", "blocks")
    )
    assert {k: float(v) for k, v in others.items()} == pytest.approx(
        {k: float(v) for k, v in metrics.items()}, rel=1e-5
    )
    largest = max(float(jnp.abs(g).max()) for g in stored.values())
    for name, gradient in stored.items():
        np.testing.assert_allclose(again[name], gradient, atol=2e-5 * largest, err_msg=name)
    assert largest > 0


def test_narrow_frozen_weights_change_no_bit():
    """In bfloat16 every layer casts them anyway."""
    (wide, metrics), (narrow, others) = (
        gradients("grounding", dtype="bfloat16", narrow=narrow) for narrow in (False, True)
    )
    assert {k: float(v) for k, v in others.items()} == {k: float(v) for k, v in metrics.items()}
    for name, gradient in wide.items():
        np.testing.assert_array_equal(narrow[name], gradient, err_msg=name)


def test_only_kernels_that_layers_cast_are_narrow():
    leaves = dict(random_params(CONFIG, 0))
    narrow = {name for name, leaf in narrowed(leaves, "bfloat16").items() if leaf.itemsize == 2}
    assert "unet/conv_in/kernel" in narrow
    assert not [n for n in narrow if "time_" in n or "norm" in n or not n.startswith("unet/")]
    assert all(leaf.itemsize == 4 for leaf in narrowed(leaves, "float32").values())


def tensors(queries: int, keys: int):
    streams = jax.random.split(jax.random.key(0), 3)
    lengths = (queries, keys, keys)
    return [jax.random.normal(k, (2, n, 3, 8)) for k, n in zip(streams, lengths, strict=True)]


@pytest.mark.parametrize(("queries", "logits"), [(24, 100), (24, 24 * 29), (23, 60), (24, 10**6)])
def test_blockwise_attention_equals_plain_both_ways(queries, logits, monkeypatch):
    monkeypatch.setattr(recompute, "LOGITS", logits)
    arrays = tensors(queries, 29)
    out, back = jax.vjp(blockwise_attention, *arrays)
    expected, expected_back = jax.vjp(plain, *arrays)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    for found, wanted in zip(back(out), expected_back(expected), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    # The backward pass stores nothing as large as the logits of one head.
    stored = [leaf.size // 6 for leaf in jax.tree.leaves(back)]
    assert max(stored) < queries * 29


def test_blocks_divide_the_queries():
    assert query_block(4096, 4126) == 512  # Stable Diffusion's largest maps, with 30 boxes
    assert query_block(4096, 77) == 4096
    assert query_block(7, 10**8) == 1


@pytest.mark.slow
def test_a_run_resumes_with_another_remat(base, tmp_path, monkeypatch):
    """It is not part of the experiment: like the number of devices, it changes rounding only."""
    squares = Squares()
    data = Data(squares, lambda count: squares.batch(0, count), None)
    monkeypatch.setattr("reground_jax.training.opening.open_data", lambda source, folder: data)
    for end, remat in ((2, "none"), (3, "blocks")):
        recipe = tiny_recipe(last_step=end)
        config = StageConfig(
            source={}, recipe=recipe, dtype="bfloat16", remat=remat, num_samples=1,
            save_dtype="float32",
        )  # fmt: skip
        assert STAGES["grounding"](
            open_stage("grounding", config, tmp_path, base=base), minutes=None
        )
        given, made = read_model(base), read_model(tmp_path / "model")
        shutil.rmtree(tmp_path / "model")
    assert "changes" not in made.info["training"][-1]
    after = dict(flatten(made.params))
    for name, leaf in flatten(given.params):  # the frozen ones, narrow in the step, are as before
        np.testing.assert_array_equal(after[name], leaf, err_msg=name)

"""The training stages, at tiny sizes: freezing, resuming, losses and batches."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reground_jax.conditioning import Texts
from reground_jax.config import (
    NoiseSchedule,
)
from reground_jax.model import network, read_model
from reground_jax.networks.attention import attention_for
from reground_jax.networks.grounding.text import Grounding
from reground_jax.pipeline import Pipeline
from reground_jax.storage.checkpoint import flatten
from reground_jax.storage.facts import is_grounding
from reground_jax.training.batches import ImageBatches, LatentBatches
from reground_jax.training.data import prefetch
from reground_jax.training.encoding import latent_deviation
from reground_jax.training.losses import (
    DiffusionLoss,
    LatentBatch,
    edge_loss,
    forward_process,
)
from reground_jax.training.opening import Stage
from reground_jax.training.recipe import Recipe
from reground_jax.training.stages import STAGES
from reground_jax.training.state import nested, read_record, split_leaves
from reground_jax.training.trainer import Trainer
from tests.training import TINY, TOKENIZER, Squares, squares_stage, tiny_recipe


@pytest.fixture(scope="module")
def grounded(base, tmp_path_factory) -> Stage:
    """A run of the stage "grounding" in float32; no test changes its folder."""
    with pytest.MonkeyPatch.context() as patch:
        out = tmp_path_factory.mktemp("grounded")
        stage = squares_stage("grounding", out, base, patch, wiring="parallel")
        assert STAGES["grounding"](stage, minutes=None)
    return stage


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_grounding_changes_every_new_leaf_and_no_frozen_bit(base, grounded):
    stage, out = grounded, grounded.out
    before = dict(flatten(read_model(base).params))
    after = dict(flatten(read_model(out / "model").params))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    new = set(after) - set(before)
    assert new and all(is_grounding(name) for name in new)
    # The first step changes only gates: a zero gate blocks other gradients. Then all change.
    start = {name: np.asarray(leaf) for name, leaf in stage.leaves.items()}
    assert not [name for name in new if np.array_equal(start[name], after[name])]
    assert (out / "samples" / "0000003.png").exists()
    record = read_record(out / "state" / "00000003")["experiment"]
    assert record["wiring"] == "parallel" and record["recipe"]["batch_size"] == 4
    assert record["start"]["from"] == read_model(base).info["checksum"]
    assert Pipeline.load(out / "model").config.unet.grounding == "text"


@pytest.mark.slow
def test_fusers_of_another_model_initialize_grounding(base, tmp_path, monkeypatch):
    first = squares_stage("grounding", tmp_path / "first", base, monkeypatch)
    assert STAGES["grounding"](first, minutes=None)
    other = tmp_path / "first" / "model"
    text = squares_stage("text_to_image", tmp_path / "text", base, monkeypatch)
    assert STAGES["text_to_image"](text, minutes=None)
    newer = tmp_path / "text" / "model"

    stage = squares_stage("grounding", tmp_path / "second", newer, monkeypatch, fusers=other)
    known, frozen = (dict(flatten(read_model(place).params)) for place in (other, newer))
    assert set(stage.leaves) == set(known)
    for name, leaf in stage.leaves.items():
        source = known if is_grounding(name) else frozen
        np.testing.assert_array_equal(leaf, source[name], err_msg=name)
    assert [record["stage"] for record in stage.info["training"]][-2:] == [
        "text_to_image", "grounding",
    ]  # fmt: skip

    with pytest.raises(ValueError, match="is only for stage grounding"):
        squares_stage("text_to_image", tmp_path / "third", base, monkeypatch, fusers=other)
    with pytest.raises(ValueError, match="no fusers"):
        squares_stage("grounding", tmp_path / "fourth", base, monkeypatch, fusers=newer)


@pytest.mark.parametrize("start", ["gates", "outputs"])
def test_new_fusers_do_not_change_the_u_net(start, base, tmp_path, monkeypatch):
    stage = squares_stage("grounding", tmp_path, base, monkeypatch, fuser_start=start)
    gates = [float(v) for k, v in stage.leaves.items() if k.endswith("/fuser/alpha_attn")]
    assert set(gates) == ({0.0} if start == "gates" else {1.0})
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 8, 8, 2)), jnp.float32)
    text = jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32)
    boxes = jnp.tile(jnp.array([0.1, 0.2, 0.6, 0.9]), (2, 3, 1))
    grounding = Grounding(boxes, jnp.ones((2, 3, 8)), jnp.ones((2, 3)))
    timesteps = jnp.array([10.0, 700.0])

    def output(config, leaves, wiring, gate):
        unet = nnx.merge(network(config, "unet")[0], nested(leaves)["unet"])
        prepared = unet.prepare(
            text, unet.tokens(grounding, dtype=text.dtype), timesteps, wiring=wiring
        )
        attend = attention_for("cpu", "plain")
        return np.asarray(unet(x, prepared, gate=gate, wiring=wiring, attend=attend))

    plain = output(TINY, dict(flatten(read_model(base).params)), "no_grounding", None)
    for wiring in ("sequential", "parallel"):
        grounded = output(stage.model, stage.leaves, wiring, jnp.float32(1))
        if wiring == "sequential":
            np.testing.assert_array_equal(grounded, plain)  # 0 * anything adds exactly nothing
        else:  # cross-attention's q comes from folded weights, so values near 1 round differently
            np.testing.assert_allclose(grounded, plain, atol=1e-5)


def test_text_to_image_trains_all_but_the_autoencoder(base, tmp_path, monkeypatch):
    stage = squares_stage("text_to_image", tmp_path, base, monkeypatch, cache_examples=8)
    assert STAGES["text_to_image"](stage, minutes=None)
    before = dict(flatten(read_model(base).params))
    after = dict(flatten(read_model(tmp_path / "model").params))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split("/")[0] for name in changed} == {"unet", "text_encoder"}


def test_the_autoencoder_stage_scales_latents_to_unit_variance(base, tmp_path, monkeypatch):
    stage = squares_stage("autoencoder", tmp_path, base, monkeypatch)
    assert STAGES["autoencoder"](stage, minutes=None)
    trained = read_model(tmp_path / "model")
    deviation = latent_deviation(stage, dict(flatten(trained.params)))
    # Not exact, because scaling_factor is stored with five decimals.
    assert deviation * trained.config.vae.scaling_factor == pytest.approx(1, abs=1e-3)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


class Killed(BaseException):
    """Stands in for SIGKILL: unlike an error, it does not trigger a checkpoint."""


def latent_trainer(stage: Stage, out: Path, recipe: Recipe, killed_at: int | None) -> Trainer:
    loss = DiffusionLoss(stage.model, stage.attend(), "no_grounding")
    trained, frozen = split_leaves(stage.leaves, lambda name: name.startswith("unet/"))
    rng = np.random.default_rng(7)
    latents = rng.standard_normal((64, 4, 8, 8, 2)).astype(np.float32)
    ids = np.tile(np.arange(16, dtype=np.int32), (4, 1))

    def make(step: int):
        if step == killed_at:
            raise Killed
        positions = np.arange(4 * step, 4 * step + 4, dtype=np.int32)
        return LatentBatch(latents[step], ids, np.zeros_like(ids), None, positions)

    return Trainer(loss, recipe, trained, frozen, make, out, tuple(jax.devices()[:1]))


@pytest.mark.slow  # a minute each; test_train_command.py kills a real process twice
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_killed_at_three_random_steps_resumes_bit_for_bit(
    optimizer, base, tmp_path, monkeypatch
):
    stage = squares_stage("text_to_image", tmp_path, base, monkeypatch)
    recipe = tiny_recipe(num_steps=12, save_every=2, optimizer=optimizer)
    whole = latent_trainer(stage, tmp_path / "whole", recipe, None)
    assert whole.run(progress=False)
    kills = np.random.default_rng(3).choice(np.arange(3, 12), 3, replace=False)
    for step in sorted(kills.tolist()):
        with pytest.raises(Killed):
            latent_trainer(stage, tmp_path / "killed", recipe, step).run(progress=False)
    resumed = latent_trainer(stage, tmp_path / "killed", recipe, None)
    assert int(resumed.state.step) > 0  # it did resume from a checkpoint
    assert resumed.run(progress=False)

    def losses(folder: str) -> dict[int, set[float]]:
        seen: dict[int, set[float]] = {}
        for line in (tmp_path / folder / "log.jsonl").read_text().splitlines():
            value = json.loads(line)
            seen.setdefault(value["step"], set()).add(value["loss"])
        return seen

    # Steps after a checkpoint ran twice, both times with the loss of the uninterrupted run.
    assert losses("killed") == losses("whole")
    for mine, theirs in zip(
        jax.tree.leaves(resumed.state), jax.tree.leaves(whole.state), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def without_previews(monkeypatch) -> None:
    """For runs whose samples no test looks at: drawing them compiles more than training does."""
    monkeypatch.setattr("reground_jax.training.stages.generations", lambda *_: None)


def test_the_box_attention_loss_is_added_with_its_weight(base, grounded, tmp_path, monkeypatch):
    without_previews(monkeypatch)
    stage = squares_stage(
        "grounding", tmp_path, base, monkeypatch,
        recipe=tiny_recipe(num_steps=60, log_every=10), loss={"box_attention": 0.5},
    )  # fmt: skip
    assert STAGES["grounding"](stage, minutes=None)
    assert grounded.terms.box_attention == 0 and "box_attention" not in log(grounded.out)[0]
    first, *_, last = log(tmp_path)
    assert last["box_attention"] < 0.5 * first["box_attention"]
    assert first["loss"] == pytest.approx(first["mse"] + 0.5 * first["box_attention"], rel=1e-5)


def test_bfloat16_arithmetic_keeps_float32_weights(base, grounded, tmp_path, monkeypatch):
    without_previews(monkeypatch)
    stage = squares_stage(
        "grounding", tmp_path, base, monkeypatch, wiring="parallel", dtype="bfloat16",
    )  # fmt: skip
    assert STAGES["grounding"](stage, minutes=None)
    for out in (tmp_path, grounded.out):
        assert read_model(out / "model").info["dtype"] == "float32"
    # The same step except for bfloat16 rounding; equal losses would mean that it was not used.
    low, exact = (log(out)[0]["loss"] for out in (tmp_path, grounded.out))
    assert 0 < abs(low - exact) < 0.02 * exact


def test_v_and_epsilon_recover_the_noised_latents():
    rng = np.random.default_rng(0)
    latents, noise = (jnp.asarray(rng.standard_normal((3, 4, 4, 2)), jnp.float32) for _ in "ab")
    timesteps = jnp.array([0, 500, 999])
    for kind in ("epsilon", "v_prediction"):
        schedule = NoiseSchedule(prediction_type=kind)
        noisy, target, snr = forward_process(schedule, latents, noise, timesteps)
        kept = snr / (1 + snr)
        alpha, sigma = (jnp.sqrt(v)[:, None, None, None] for v in (kept, 1 - kept))
        if kind == "epsilon":
            back = (noisy - sigma * target) / alpha
        else:
            back = alpha * noisy - sigma * target
        np.testing.assert_allclose(back, latents, atol=2e-4)  # alpha is 0.07 at the last step


def test_the_edge_loss_detects_blur_that_l1_does_not():
    stripes = jnp.tile(jnp.array([0.5, -0.5]), 4)[None, None, :, None] * jnp.ones((1, 8, 8, 1))
    flat = 0.5 * jnp.ones((1, 8, 8, 1))
    assert float(jnp.abs(stripes).mean()) == float(jnp.abs(flat).mean())
    assert float(edge_loss(flat, 1)) == 0
    assert float(edge_loss(stripes, 1)) == 1  # horizontal differences are 1, vertical ones 0


def test_cached_batches_repeat_with_new_positions():
    calls = []

    def encode(images):
        calls.append(len(images))
        return images[..., :2].astype(np.float32)

    texts = Texts(TOKENIZER, TINY.text_encoder.tokenizer)
    make = LatentBatches(Squares(), 4, texts, encode=encode, ground=None, cache_examples=11)
    first, again = make(1), make(3)  # 11 examples are two whole batches of 4
    np.testing.assert_array_equal(first.latents, again.latents)
    assert again.position.tolist() == [12, 13, 14, 15]  # from 3 * 4: different noise than before
    assert calls == [4]
    with pytest.raises(ValueError, match="cache_examples is 3, less than a batch of 4: whole"):
        LatentBatches(Squares(), 4, texts, encode=encode, ground=None, cache_examples=3)
    assert ImageBatches(Squares(), 4)(1).position.tolist() == [4, 5, 6, 7]


def test_prefetching_keeps_order_and_raises_where_the_batch_failed():
    def make(index: int) -> int:
        if index == 4:
            raise ValueError("batch 4 is bad")
        return index

    batches = prefetch(make, 2, ahead=3)
    assert [next(batches), next(batches)] == [2, 3]
    with pytest.raises(ValueError, match="batch 4 is bad"):
        next(batches)

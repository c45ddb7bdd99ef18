"""The grounding stage with a semantic map: what it trains, what it refuses, and its result."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reground_jax.devices import SPLIT, WHOLE, over_devices
from reground_jax.layout import Layout
from reground_jax.model import network, random_params, read_model
from reground_jax.networks.attention import attention_for
from reground_jax.networks.grounding.maps import Grounding
from reground_jax.pipeline import Pipeline
from reground_jax.storage.checkpoint import flatten
from reground_jax.storage.facts import GATES, is_grounding
from reground_jax.training.batches import labels
from reground_jax.training.config import StageConfig
from reground_jax.training.dry_run import dry_run
from reground_jax.training.initial import regrounded
from reground_jax.training.losses import DiffusionLoss, DiffusionTerms, LatentBatch
from reground_jax.training.opening import Stage, check_labels, open_stage, stage_terms
from reground_jax.training.package import package
from reground_jax.training.sources import Data
from reground_jax.training.stages import STAGES, parts_of, stage_loss
from reground_jax.training.state import Leaves, nested
from reground_jax.training.trainer import Trainer
from reground_jax.unet_config import MapConfig, UNetConfig
from tests.training import CLASSES, SIZE, TINY, Squares, squares_stage, tiny_recipe

MAP = MapConfig(side=16, depths=(1,), widths=(8,), downsampler=(4, 4), classes=CLASSES)
SEM = {"grounding": "sem", "map": MAP}
CONV_IN = "unet/conv_in/kernel"


def sem_stage(out: Path, base: Path, monkeypatch, **changes) -> Stage:
    return squares_stage("grounding", out, base, monkeypatch, **(SEM | changes))


def test_only_what_reads_the_map_changes_and_the_model_generates(base, tmp_path, monkeypatch):
    recipe = tiny_recipe(num_steps=4, sample_every=4)
    stage = sem_stage(tmp_path / "run", base, monkeypatch, recipe=recipe, fuser_start="outputs")
    assert STAGES["grounding"](stage, minutes=None)
    made = tmp_path / "run" / "model"
    before, after = (dict(flatten(read_model(path).params)) for path in (base, made))
    kept = before.keys() - {CONV_IN}
    assert all(np.array_equal(before[name], after[name]) for name in kept)
    for part in ("kernel", "bias"):
        first = after[f"unet/first_conv/{part}"]
        np.testing.assert_array_equal(first, before[f"unet/conv_in/{part}"])
    start = {name: np.asarray(leaf) for name, leaf in stage.leaves.items()}
    moved = {name for name in after if not np.array_equal(start[name], after[name])}
    wanted = {CONV_IN, *filter(is_grounding, after)}
    assert moved <= wanted
    # The backbone's blocks hardly count at first: ConvNeXt multiplies them by 1e-6.
    assert all("/backbone/stages/" in name for name in wanted - moved)
    assert np.abs(after[CONV_IN][:, :, 2:]).max() > 0  # the map's channels started at zero
    assert (tmp_path / "run" / "samples" / "0000004.png").exists()

    package(base, tmp_path / "base", None)
    package(made, tmp_path / "packed", tmp_path / "base")
    pipe = Pipeline.load(tmp_path / "packed")
    unet = pipe.config.unet
    assert (unet.grounding, unet.map, unet.first_conv) == ("sem", MAP, True)
    layouts = [Layout("a cat", map=e.labels) for e in Squares().batch(0, 2)]
    images = [
        np.asarray(pipe(layouts, num_steps=4, gamma=gamma, seeds=[0, 0])[0]) for gamma in (0, 0.5)
    ]
    assert images[1].shape == (SIZE, SIZE, 3) and (images[0] != images[1]).any()


@pytest.mark.parametrize("start", ["gates", "outputs"])
def test_at_first_a_map_changes_nothing(start, base, tmp_path, monkeypatch):
    stage = sem_stage(tmp_path, base, monkeypatch, fuser_start=start)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 8, 8, 2)), jnp.float32)
    text = jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32)

    def output(config, leaves, grounding):
        unet = nnx.merge(network(config, "unet")[0], nested(leaves)["unet"])
        tokens, appended, wiring, gate = None, None, "no_grounding", None
        if grounding is not None:
            wiring, gate = "sequential", jnp.float32(1)
            tokens = unet.tokens(grounding, dtype=x.dtype)
            appended = unet.downsample_net(grounding, (8, 8), dtype=x.dtype)
        prepared = unet.prepare(
            text, tokens, jnp.array([10.0, 700.0]), wiring=wiring, appended=appended
        )
        return unet(x, prepared, gate=gate, wiring=wiring, attend=attention_for("cpu", "plain"))

    plain = output(TINY, dict(flatten(read_model(base).params)), None)
    mapped = output(stage.model, stage.leaves, labels(Squares().batch(0, 2)))
    np.testing.assert_allclose(mapped, plain, atol=1e-5)
    off = output(stage.model, stage.leaves, None)  # through the base's own first convolution
    np.testing.assert_array_equal(off, plain)


def trainer_of(stage: Stage, out: Path, steps: int) -> Trainer:
    """Latents that are the labels, so that a map says what they are."""
    parts = parts_of(stage.kind, stage.config, stage.leaves)
    ids = np.tile(np.arange(16, dtype=np.int32), (4, 1))

    def make(step: int) -> LatentBatch:
        grounding = labels(Squares().batch(step, 4))
        latents = np.repeat(grounding.map[:, ::2, ::2, None], 2, axis=-1).astype(np.float32) - 1
        positions = np.arange(4 * step, 4 * step + 4, dtype=np.int32)
        return LatentBatch(latents, ids, np.zeros_like(ids), grounding, positions)

    loss = stage_loss(stage.kind, stage.config, stage.terms, stage.model, "cpu")
    recipe = dataclasses.replace(stage.config.recipe, last_step=steps)
    return Trainer(
        loss, recipe, parts.trained, parts.frozen, make, out, stage.devices[:1], None,
        stage.experiment,
    )  # fmt: skip


def test_the_loss_falls_and_a_resumed_run_repeats_it(base, tmp_path, monkeypatch):
    recipe = tiny_recipe(num_steps=80, warmup_steps=5, batch_size=4)
    stage = sem_stage(tmp_path, base, monkeypatch, recipe=recipe, fuser_start="outputs")
    assert trainer_of(stage, tmp_path / "whole", 80).run(progress=False)
    for steps in (30, 80):
        assert trainer_of(stage, tmp_path / "parts", steps).run(progress=False)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    whole, parts = ([json.loads(line)["loss"] for line in log.splitlines()] for log in logs)
    assert len(whole) == 80 and parts == whole
    assert np.mean(whole[-20:]) < 0.8 * np.mean(whole[:20])


def test_a_dropped_map_has_null_tokens_and_is_still_appended(base, tmp_path, monkeypatch):
    stage = sem_stage(tmp_path, base, monkeypatch)
    opened = {name: jnp.ones_like(v) for name, v in stage.leaves.items() if name.endswith(GATES)}
    wide = np.random.default_rng(0).standard_normal(stage.leaves[CONV_IN].shape)
    leaves = stage.leaves | opened | {CONV_IN: wide.astype(np.float32)}
    attend, ids = attention_for("cpu", "plain"), np.zeros((4, 16), np.int32)
    seen = labels(Squares().batch(0, 4))

    def loss(drop: int, grounding: Grounding) -> float:
        terms = DiffusionTerms(caption_drop=0, grounding_drop=drop)
        latents, positions = np.ones((4, 8, 8, 2), np.float32), np.arange(4, dtype=np.int32)
        batch = LatentBatch(latents, ids, ids, grounding, positions)
        ours = DiffusionLoss(stage.model, attend, "sequential", terms=terms)
        run = over_devices(ours, (WHOLE, SPLIT), WHOLE, devices=stage.devices[:1])
        return float(run(nested(leaves), batch)[0])

    dropped = loss(1, seen)
    assert dropped == loss(0, Grounding(seen.map, 0 * seen.mask))
    assert dropped != loss(0, seen)
    assert dropped != loss(1, Grounding(0 * seen.map, seen.mask))


def test_a_unet_grounded_by_another_kind_starts_anew():
    unet = TINY.unet
    text = dataclasses.replace(unet, grounding="text")
    sem = dataclasses.replace(unet, grounding="sem", map=MAP, first_conv=True)

    def leaves(own: UNetConfig) -> Leaves:
        config = dataclasses.replace(TINY, unet=own)
        return {k: np.asarray(v) for k, v in random_params(config, 0) if k.startswith("unet/")}

    boxes, mapped = leaves(text), leaves(sem)
    assert regrounded(boxes, text, text) is boxes and regrounded(mapped, sem, sem) is mapped
    new, back = regrounded(boxes, text, sem), regrounded(mapped, sem, text)
    assert not [name for name in (*new, *back) if is_grounding(name)]
    plain, wide = boxes[CONV_IN], new[CONV_IN]
    np.testing.assert_array_equal(wide[:, :, :2], plain)
    assert wide.shape == mapped[CONV_IN].shape and not wide[:, :, 2:].any()
    np.testing.assert_array_equal(new["unet/first_conv/kernel"], plain)
    np.testing.assert_array_equal(back[CONV_IN], mapped["unet/first_conv/kernel"])
    assert "unet/first_conv/kernel" not in back
    other = dataclasses.replace(sem, map=dataclasses.replace(MAP, downsampler=(4, 8)))
    assert regrounded(mapped, sem, other)[CONV_IN].shape[2] == 2 + 8


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"grounding": "sem"}, "grounding is 'sem' and map is None: a semantic map needs a map"),
        ({"map": MAP}, "grounding is 'text' and map is MapConfig.*, and text has none"),
        ({"grounding": "canny", "map": MAP}, "grounding 'canny' is unknown"),
        ({"grounding": "sem", "map": {"side": 16}}, "a semantic map needs a map"),
    ],
)
def test_a_wrong_kind_is_one_sentence(fields, told):
    with pytest.raises(ValueError, match=told):
        StageConfig(source={}, recipe=tiny_recipe(), **fields)


def test_a_map_that_does_not_fit_the_data_or_the_loss_is_refused(tmp_path):
    config = StageConfig(source={"kind": "coco"}, recipe=tiny_recipe(), **SEM)
    for classes, told in (
        (None, "source 'coco' has no labels of its pixels, which grounding 'sem' learns to read"),
        (25, "map.classes is 3, but the source has 25, with the background: set it to 25"),
    ):
        with pytest.raises(ValueError, match=told):
            check_labels("grounding", config, Data(Squares(), lambda n: [], None, classes=classes))
    boxes = dataclasses.replace(config, loss={"box_attention": 0.1})
    with pytest.raises(ValueError, match="box_attention is about boxes, but grounding 'sem' has"):
        stage_terms("grounding", boxes)
    with pytest.raises(ValueError, match="grounding is 'sem', but text_to_image learns none"):
        open_stage("text_to_image", config, tmp_path, base=tmp_path)
    path = tmp_path / "stage.json"
    content = {"source": {}, "recipe": {"num_steps": 3, "batch_size": 4}, "grounding": "sem"}
    for own, told in (
        ({"sides": 16}, "map field 'sides' is unknown: did you mean 'side'?"),
        ({"side": 20}, "MapConfig.side is 20: it must be a multiple of 32"),
    ):
        path.write_text(json.dumps(content | {"map": own}))
        with pytest.raises(ValueError, match=told):
            StageConfig.load(path)


def test_a_dry_run_compiles_the_step_with_maps():
    config = StageConfig(source={}, recipe=tiny_recipe(), **SEM)
    run = dry_run("grounding", config, TINY, jax.local_devices()[:1])
    assert run.flops > 0 and run.compiled.bytes > 0

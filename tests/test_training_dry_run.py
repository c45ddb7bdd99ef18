"""`reground-jax train --dry-run`: the step compiled from shapes, its report, and its errors."""

import importlib.util
import json
import shutil

import jax
import pytest

from reground_jax.bench.chips import CHIPS, Chip, tpu_devices
from reground_jax.bench.presets import preset_config
from reground_jax.cli import main
from reground_jax.training.config import StageConfig
from reground_jax.training.costs import step_flops
from reground_jax.training.dry_run import SHARE, days_on, dry_run, step_call
from reground_jax.training.opening import stage_model
from reground_jax.training.recipe import Recipe
from tests.training import SIZE, tiny_recipe


def config_of(batch: int = 2, **fields) -> StageConfig:
    recipe = Recipe(num_steps=500_000, batch_size=batch)
    return StageConfig(source={}, recipe=recipe, **fields)


@pytest.fixture
def config(tmp_path):
    """A config file whose data does not exist."""
    content = {
        "source": {"kind": "jsonl", "path": "gone.jsonl", "image_size": SIZE},
        "recipe": {"num_steps": 500_000, "batch_size": 2}, "dtype": "bfloat16", "remat": "blocks",
    }  # fmt: skip
    path = tmp_path / "stage.json"
    path.write_text(json.dumps(content))
    return path


def test_the_command_reads_no_data_and_no_arrays_and_writes_nothing(config, base, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(base / name, model)
    command = ["train", "grounding", "--config", str(config), "--dry-run", "--from", str(model)]
    assert main(command) == 0
    told = capsys.readouterr().out
    count = f"batch 2 on {len(jax.local_devices())} device"
    assert f"stage grounding, bfloat16, remat blocks: {count}" in told
    assert "memory per device, as laid out: " in told and "temporaries" in told
    assert "collectives per step: none, on a single device" in told
    assert "500000 steps at 30% of the datasheet's peak, which is an assumption" in told
    assert all(f"  {name}: " in told for name in CHIPS)
    assert set(tmp_path.iterdir()) == {config, model}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--preset", "tiny"], "--preset is only for --dry-run"),
        (["--topology", "v5e:2x2"], "--topology is only for --dry-run"),
        ([], "--out is missing"),
        (["--dry-run", "--preset", "huge"], "preset 'huge' is unknown"),
        (["--dry-run", "--preset", "tiny", "--from", "."], "--preset is the shape of a model, and"),
        (["--dry-run", "--topology", "v9:2x2"], "TPU 'v9' is unknown"),
        (["--dry-run", "--preset", "sd14"], "images are 16 pixels wide, but the model's are 512"),
    ],
)
def test_a_wrong_command_is_one_sentence(options, told, config, capsys):
    assert main(["train", "grounding", "--config", str(config), *options]) == 2
    assert told in capsys.readouterr().err


def test_without_libtpu_a_topology_is_one_sentence(config, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    command = ["train", "grounding", "--config", str(config), "--dry-run", "--topology", "v5e:2x2"]
    assert main(command) == 2
    assert "compiling for TPU needs libtpu" in capsys.readouterr().err


def test_a_batch_that_does_not_divide_is_refused_before_compiling():
    model = stage_model("grounding", config_of(), preset_config("tiny"))
    devices = jax.local_devices()[:1] * 3
    with pytest.raises(ValueError, match="batch_size 2 does not divide evenly over 3 devices"):
        step_call("grounding", config_of(), model, devices, 64)


def test_days_are_a_division_by_an_assumed_share():
    chip = Chip("none", flops=1e12, memory=1.0, clock=1.0)
    day = 86_400 * 1e12 * SHARE  # FLOP
    assert days_on(chip, tiny_recipe(num_steps=3), round(day)) == pytest.approx(3)


# Matrix products and convolutions of the traced step at this size, in TFLOP, without the encoding.
@pytest.mark.parametrize(
    ("kind", "remat", "traced"),
    [
        ("grounding", False, 2.684), ("grounding", True, 3.371),
        ("text_to_image", False, 2.467), ("text_to_image", True, 2.909),
    ],
)  # fmt: skip
def test_the_count_is_close_to_the_traced_step(kind, remat, traced):
    model = stage_model(kind, config_of(), preset_config("sd14"))
    encoding = 2 * 558.33e9
    found = step_flops(kind, model, 512, remat=remat) - encoding
    assert found / 1e12 == pytest.approx(traced, rel=0.025)


@pytest.mark.aot
def test_sixteen_chips_only_add_up_gradients_and_metrics():
    pytest.importorskip("libtpu")
    devices, chip = tpu_devices("v5e:4x4"), CHIPS["v5e"]
    config = config_of(32, dtype="bfloat16", remat="blocks")
    run = dry_run("grounding", config, preset_config("tiny"), devices, chip)
    model = stage_model("grounding", config, preset_config("tiny"))
    (_, (state, _, _)), _ = step_call("grounding", config, model, devices, 64)
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    found = run.compiled.program.collectives()
    assert list(found) == ["all-reduce"]
    # Of metrics: mse, which is the loss too; mse_early, and the two sums that it is the ratio of.
    assert found["all-reduce"]["bytes"] == 4 * (trained + 4)
    assert run.compiled.bytes < chip.memory

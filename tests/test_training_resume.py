"""Resuming a training folder: experiment checks, and a good checkpoint after every exit."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.basics.identity import differences
from reground_jax.devices import place_whole
from reground_jax.storage.checkpoint import CheckpointError
from reground_jax.training.recipe import Recipe
from reground_jax.training.state import latest_state, read_record
from reground_jax.training.trainer import Diverged, Trainer
from tests.training import tiny_recipe


def line_loss(params, batch):
    """Fits a straight line through points; compiles quickly."""
    error = params["line"]["kernel"][0] * batch[:, 0] - batch[:, 1]
    return jnp.square(error).mean(), {"error": jnp.abs(error).mean()}


def points(step: int) -> np.ndarray:
    rng = np.random.default_rng(step)
    x = rng.standard_normal((4, 1)).astype(np.float32)
    return np.concatenate([x, 3 * x], 1)


def line(out: Path, recipe: Recipe | None = None, make=points, **fields: Any) -> Trainer:
    trained = {"line/kernel": np.zeros((1, 1), np.float32)}
    return Trainer(
        line_loss, recipe or tiny_recipe(num_steps=6, save_every=2), trained, {}, make, out,
        tuple(jax.devices()[:1]), **fields,
    )  # fmt: skip


def steps(out: Path) -> list[int]:
    return [json.loads(text)["step"] for text in (out / "log.jsonl").read_text().splitlines()]


# ---- another experiment


EXPERIMENT = {"stage": "grounding", "wiring": "sequential", "data": {"examples": 4, "seed": 0}}


@pytest.fixture
def begun(tmp_path) -> Path:
    """A run with 2 of 6 steps done, batch size 4 and sequential wiring."""
    recipe = tiny_recipe(num_steps=6, save_every=2, last_step=2)
    assert line(tmp_path, recipe, experiment=EXPERIMENT).run(progress=False)
    return tmp_path


def test_another_experiment_is_refused_and_every_difference_is_named(begun):
    recipe = tiny_recipe(num_steps=6, save_every=2, batch_size=8, seed=3, learning_rate=0.5)
    other = EXPERIMENT | {"wiring": "parallel", "data": {"examples": 5, "seed": 0}}
    with pytest.raises(ValueError, match="holds a different experiment") as caught:
        line(begun, recipe, experiment=other)
    for text in (
        'wiring "sequential" -> "parallel"', "data.examples 4 -> 5", "recipe.batch_size 4 -> 8",
        "recipe.seed 0 -> 3", "recipe.learning_rate 0.01 -> 0.5", "another --out",
        "Give the old config",
    ):  # fmt: skip
        assert text in str(caught.value)
    assert "data.seed" not in str(caught.value)


def test_a_later_end_and_other_intervals_are_the_same_experiment(begun):
    recipe = tiny_recipe(num_steps=6, save_every=3, log_every=2, sample_every=1)
    trainer = line(begun, recipe, experiment=EXPERIMENT)
    assert int(trainer.state.step) == 2 and trainer.changes == []
    assert trainer.run(progress=False)
    assert steps(begun) == [1, 2, 4, 6]


def test_more_steps_are_accepted_and_recorded_and_fewer_are_refused(begun):
    longer = tiny_recipe(num_steps=9, last_step=4)
    trainer = line(begun, longer, experiment=EXPERIMENT)
    assert trainer.run(progress=False)
    changes = [{"step": 2, "what": ["recipe.num_steps 6 -> 9"]}]
    assert trainer.changes == changes
    again = line(begun, longer, experiment=EXPERIMENT)
    assert again.changes == changes  # they stay with the run
    with pytest.raises(ValueError, match="recipe.num_steps 9 -> 8"):
        line(begun, tiny_recipe(num_steps=8), experiment=EXPERIMENT)


def test_changes_that_are_accepted_are_recorded(begun):
    other = EXPERIMENT | {"wiring": "parallel"}
    trainer = line(
        begun, tiny_recipe(num_steps=6), experiment=other, accept_changes=True
    )  # fmt: skip
    assert trainer.changes == [{"step": 2, "what": ['wiring "sequential" -> "parallel"']}]
    assert trainer.run(progress=False)
    latest = latest_state(begun / "state")
    assert latest is not None
    assert read_record(latest)["experiment"]["wiring"] == "parallel"


def test_a_folder_without_a_recorded_experiment_resumes_with_a_warning(begun):
    (path,) = (begun / "state").glob("*/state.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: content[name] for name in ("format", "groups")}))
    with pytest.warns(UserWarning, match="did not record its experiment: it continues"):
        trainer = line(begun, experiment=EXPERIMENT)
    assert int(trainer.state.step) == 2
    assert trainer.changes == [{"step": 2, "what": ["not recorded before"]}]


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"format": 1}', '{"format": "x"}', ""])
def test_a_damaged_state_is_one_sentence_with_a_way_out(content, begun):
    (path,) = (begun / "state").glob("*/state.json")
    path.write_text(content)
    with pytest.raises(CheckpointError, match="00000002"):
        line(begun, experiment=EXPERIMENT)


def test_the_error_for_missing_arrays_does_not_suggest_convert(begun):
    (path,) = (begun / "state").glob("*/arrays")
    path.rename(path.with_name("lost"))
    with pytest.raises(CheckpointError, match="remove it to continue from") as caught:
        line(begun, experiment=EXPERIMENT)
    assert "convert" not in str(caught.value)


def test_a_state_of_another_optimizer_is_refused_by_its_record_and_by_its_arrays(begun):
    muon = tiny_recipe(num_steps=6, optimizer="muon")
    with pytest.raises(ValueError, match='recipe.optimizer "adamw" -> "muon".*another --out'):
        line(begun, muon, experiment=EXPERIMENT)
    with pytest.raises(CheckpointError, match="another --out folder"):
        line(begun, muon, experiment=EXPERIMENT, accept_changes=True)


def test_differences_have_the_names_of_all_parts():
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": True}
    new = {"a": 1, "b": {"c": (1, 3), "d": "x" * 200}}
    told = [str(difference) for difference in differences(old, new)]
    assert told[0] == "b.c [1, 2] -> [1, 3]" and told[2] == "gone true -> null"
    assert told[1].startswith('b.d "x" -> "xxx') and len(told[1]) < 80
    assert differences(old, json.loads(json.dumps(old))) == []


def test_frozen_weights_that_are_on_the_devices_are_not_copied(tmp_path):
    devices = tuple(jax.devices()[:1])
    placed = place_whole(np.ones((2, 2), np.float32), devices)
    trained = {"line/kernel": np.zeros((1, 1), np.float32)}
    trainer = Trainer(
        line_loss, tiny_recipe(), trained, {"line/bias": placed}, points, tmp_path, devices
    )
    kept = trainer.frozen["line/bias"]
    assert kept.unsafe_buffer_pointer() == placed.unsafe_buffer_pointer()


# ---- every way to stop


def test_a_run_may_end_before_its_learning_rate_schedule(tmp_path):
    recipe = tiny_recipe(num_steps=6)
    early = dataclasses.replace(recipe, last_step=2)
    assert line(tmp_path, early).run(progress=False)
    assert line(tmp_path, recipe).run(progress=False)
    line(tmp_path / "whole", recipe).run(progress=False)
    ends = [
        (out / "log.jsonl").read_text().splitlines()[-1] for out in (tmp_path, tmp_path / "whole")
    ]
    assert json.loads(ends[0])["loss"] == json.loads(ends[1])["loss"]


def test_a_time_limit_ends_in_a_checkpoint(tmp_path):
    trainer = line(tmp_path, tiny_recipe(num_steps=60))
    assert not trainer.run(minutes=0, progress=False)
    assert int(line(tmp_path, tiny_recipe(num_steps=60)).state.step) == 1


def test_an_error_in_the_data_leaves_a_checkpoint_of_all_steps_done(tmp_path):
    def make(step: int):
        if step == 3:
            raise ValueError("picture 12 is gone")
        return points(step)

    with pytest.raises(ValueError, match="picture 12 is gone"):
        line(tmp_path, make=make).run(progress=False)
    again = line(tmp_path)
    assert int(again.state.step) == 3
    assert again.run(progress=False)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]  # no step ran twice


def test_an_error_in_a_sample_leaves_a_checkpoint_too(tmp_path):
    def draw(step: int, average: dict) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        line(tmp_path, on_sample=draw).run(progress=False)
    assert int(line(tmp_path).state.step) == 3  # samples come every 3 steps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_saves_a_checkpoint(number, tmp_path):
    trainer = line(tmp_path, tiny_recipe(num_steps=6, save_every=100))
    real = trainer._step

    def stepped(*arguments):
        result = real(*arguments)
        if int(result[0].step) == 2:
            os.kill(os.getpid(), number)
        return result

    trainer._step = stepped
    before = signal.getsignal(number)
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(progress=False)
    else:
        assert not trainer.run(progress=False)
    assert signal.getsignal(number) == before
    assert int(line(tmp_path).state.step) == 2
    assert line(tmp_path).run(progress=False)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_second_ctrl_c_stops_at_once_and_keeps_the_previous_checkpoint(tmp_path):
    trainer = line(tmp_path, tiny_recipe(num_steps=6, save_every=1))
    real = trainer._step

    def stepped(*arguments):
        if int(arguments[0].step) == 2:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    trainer._step = stepped
    with pytest.raises(KeyboardInterrupt):
        trainer.run(progress=False)
    assert int(line(tmp_path).state.step) == 2


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(log_every, tmp_path):
    def make(step: int):
        return points(step) if step < 4 else np.full((4, 2), np.nan, np.float32)

    recipe = tiny_recipe(num_steps=12, save_every=3, log_every=log_every)
    with pytest.raises(Diverged, match=r"loss is nan at step [56].*state/00000003.*learning_rate"):
        line(tmp_path, recipe, make=make).run(progress=False)
    again = line(tmp_path, recipe)
    assert int(again.state.step) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(again.state))
    log = tmp_path / "log.jsonl"
    assert not log.exists() or "NaN" not in log.read_text()


def test_an_error_after_the_loss_became_nan_saves_nothing(tmp_path):
    def make(step: int):
        if step == 5:
            raise ValueError("the data ends here")
        return points(step) if step < 4 else np.full((4, 2), np.nan, np.float32)

    recipe = dataclasses.replace(tiny_recipe(), num_steps=12, save_every=3, log_every=100)
    with pytest.raises(Diverged, match="loss is nan at step 5"):
        line(tmp_path, recipe, make=make).run(progress=False)
    assert int(line(tmp_path, recipe).state.step) == 3

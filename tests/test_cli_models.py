"""Models that cannot be used are refused before anything is compiled."""

import os
import shutil

import pytest

from reground_jax.model import (
    random_params,
    read_model,
    write_model,
)
from tests.command import BEAR, PROMPT, one_error, run_program
from tests.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("kept_programs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grounding": None}, "this is a plain Stable Diffusion checkpoint"),
        ({"in_channels": 9, "inpainting": True}, "this is an inpainting model"),
    ],
)
def test_models_without_boxes_are_refused_before_compiling(
    changes, message, tiny_model_dir, tmp_path, capsys, compiled
):
    model = read_model(tiny_model_dir)
    config = tiny_config(model.config.text_encoder.tokenizer, **changes)
    write_model(tmp_path / "m", config, random_params(config, 0), model.tokenizer_json, {})
    assert message in one_error(capsys, ["generate", PROMPT, *BEAR, "--model", str(tmp_path / "m")])
    assert compiled == []


def test_a_damaged_model_directory_is_refused(tiny_model_dir, tmp_path, capsys, compiled):
    broken = tmp_path / "model"
    shutil.copytree(tiny_model_dir, broken)
    shutil.rmtree(broken / "arrays" / "000" / "state")
    request = ["generate", "x", "--model", str(broken)]
    assert "is missing or damaged" in one_error(capsys, request)
    (broken / "config.json").write_text('{"format": "reground-jax/1"}')
    assert "config.json has no 'info'" in one_error(capsys, ["info", str(broken)])
    assert compiled == []


def test_a_truncated_array_file_leaves_no_traceback_on_stderr(tiny_model_dir, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(tiny_model_dir, broken)
    largest = max((broken / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, 10)
    done = run_program("generate", "x", "--model", str(broken), home=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("reground-jax: error: ") and "damaged" in line

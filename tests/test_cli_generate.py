"""`reground-jax generate`: what it writes, and how it reproduces an image."""

import dataclasses
import re

import numpy as np
import pytest

from reground_jax.cli import main
from reground_jax.images import read_recipe, save_png
from reground_jax.model import (
    read_description,
)
from reground_jax.settings import Settings
from tests.command import FEW, one_error, pixels

pytestmark = pytest.mark.usefixtures("kept_programs")


def test_generate_writes_the_image_with_its_recipe_and_the_boxes(bear, tiny_model_dir):
    assert pixels(bear).shape == (64, 64, 3)
    recipe = read_recipe(bear)
    assert recipe.layout.phrases == ("a teddy bear", "a bird")
    assert recipe.layout.negative_prompt == "blurry"
    assert recipe.settings == Settings(gamma=(0.5, 0, 0.5), num_steps=2, dtype="float32")
    assert (recipe.seed, recipe.checkpoint) == (7, str(tiny_model_dir))
    assert recipe.checksum == read_description(tiny_model_dir).checksum
    assert pixels(bear.with_name("bear.boxes.png")).shape == (512, 512, 3)  # enlarged for labels
    assert sorted(path.name for path in bear.parent.iterdir()) == ["bear.boxes.png", "bear.png"]


def test_generate_from_an_image_makes_the_same_file(bear, tmp_path, capsys):
    again = tmp_path / "again.png"
    assert main(["generate", "--from", str(bear), "--out", str(again), "--no-boxes-image"]) == 0
    assert again.read_bytes() == bear.read_bytes()  # pixels and recipe
    printed = capsys.readouterr()
    assert printed.out == f"{again}\n"
    cost, device, *bars = printed.err.splitlines()
    assert cost == f"reground-jax: {bear}: 64x64 pixels, 2 steps, 2 boxes, model 'model'"
    assert re.fullmatch(r"reground-jax: cpu, float32, compiled in \d+\.\d s", device)
    assert "2/2" in bars[-1] and "step" in bars[-1]  # "step/s", or "s/step" if it is slow
    assert list(tmp_path.iterdir()) == [again]


def test_options_beside_from_change_what_they_name(bear, tmp_path, capsys):
    out = tmp_path / "other.png"
    argv = ["generate", "--from", str(bear), "--out", str(out), "--no-boxes-image"]
    assert main([*argv, "--guidance-scale", "3", "--seed", "8", "--negative-prompt", ""]) == 0
    assert "but guidance_scale 7.5 -> 3" in capsys.readouterr().err
    old, new = read_recipe(bear), read_recipe(out)
    assert new == dataclasses.replace(
        old,
        settings=dataclasses.replace(old.settings, guidance_scale=3.0),
        seed=8,
        layout=dataclasses.replace(old.layout, negative_prompt=""),
    )
    assert (pixels(out) != pixels(bear)).mean() > 0.5  # of the values: another image
    message = one_error(capsys, [*argv, "--box", "a@0,0,1,1"])
    assert "has the prompt and the boxes: leave out" in message
    assert "2 boxes, more than --max-boxes 1" in one_error(capsys, [*argv, "--max-boxes", "1"])


def test_a_model_that_is_gone_or_another_is_named(bear, tiny_model_dir, tmp_path, capsys):
    image, out = tmp_path / "image.png", tmp_path / "out.png"
    recipe = read_recipe(bear)

    gone = str(tmp_path / "gone")
    save_png(image, pixels(bear), dataclasses.replace(recipe, checkpoint=gone))
    message = one_error(capsys, ["generate", "--from", str(image)])
    assert f"was made with model '{gone}'" in message and "--model" in message

    save_png(image, pixels(bear), dataclasses.replace(recipe, checksum="0123456789abcdef"))
    message = one_error(capsys, ["generate", "--from", str(image)])
    assert "0123456789ab" in message and recipe.checksum[:12] in message

    argv = ["generate", "--from", str(image), "--out", str(out), "--model", str(tiny_model_dir)]
    assert main(argv) == 0
    assert "reground-jax: warning: " in capsys.readouterr().err
    np.testing.assert_array_equal(pixels(out), pixels(bear))


def test_an_image_without_a_recipe_is_refused(bear, capsys):
    drawn = bear.with_name("bear.boxes.png")
    assert "was not written by reground-jax" in one_error(
        capsys, ["generate", "--from", str(drawn)]
    )


def test_an_empty_prompt_is_legal_and_a_long_one_is_cut_with_one_warning(
    tiny_model_dir, tmp_path, capsys
):
    argv = ["generate", "--model", str(tiny_model_dir), *FEW, "--guidance-scale", "1"]
    assert main([*argv, "", "--out", str(tmp_path / "empty.png")]) == 0
    assert "warning" not in capsys.readouterr().err
    long = " ".join(["bird"] * 75 + ["badger"])  # one token each: 76, one too many
    assert main([*argv, long, "--out", str(tmp_path / "long.png")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("reground-jax: warning: 1 text(s) truncated") and "'badger'" in line
    assert not list(tmp_path.glob("*.boxes.png"))  # there are no boxes to draw

"""`reground-jax compare`: a figure of the images that `generate` makes."""

import json

import numpy as np
import pytest

from reground_jax.cli import compare, main
from reground_jax.draw import comparison_grid
from reground_jax.images import read_recipe
from tests.command import FEW, TEDDY, pixels

pytestmark = pytest.mark.usefixtures("kept_programs")


def test_compare_draws_a_row_per_seed_and_a_column_per_wiring(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "figure.png"
    argv = ["compare", "--layout", str(TEDDY), "--model", str(tiny_model_dir), *FEW]
    assert main([*argv, "--seeds", "7,3", "--batch-size", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert printed.err.count("compiled in") == 1
    for column in compare.COLUMNS:
        assert f"{column}: 100%" in printed.err
    height, width, _ = pixels(out).shape
    assert width > 4 * 512 and height > 2 * 512  # four panels of 512 pixels across, two down


def test_a_figure_shows_the_images_that_generate_makes(bear, tiny_model_dir, tmp_path):
    out, recipe = tmp_path / "figure.png", read_recipe(bear)
    file = tmp_path / "layout.json"
    file.write_text(json.dumps(recipe.layout.to_json()))
    argv = ["compare", "--layout", str(file), "--model", str(tiny_model_dir), *FEW]
    argv += ["--gamma", "0.5,0,0.5", "--seeds", "7", "--columns", "layout,parallel"]
    assert main([*argv, "--out", str(out)]) == 0
    images = {"parallel": [pixels(bear)]}
    expected = comparison_grid([recipe.layout], images, row_labels=["seed 7"])
    np.testing.assert_array_equal(pixels(out), np.asarray(expected))

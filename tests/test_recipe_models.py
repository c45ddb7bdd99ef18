"""Which model `generate --from IMAGE` takes: the recipe's own if it is here, and never one that
would have to be fetched, converted or looked up on another machine because a PNG says so."""

import dataclasses
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

import reground_jax.convert.conversion
import reground_jax.convert.locate
from reground_jax.basics.small_files import local_path
from reground_jax.cli import build_parser, generate, main
from reground_jax.convert.locate import BUILT_IN, MODELS
from reground_jax.images import Recipe, read_recipe, save_png
from reground_jax.layout import Layout
from reground_jax.settings import Settings
from reground_jax.storage.description import read_description

EMOJI = read_description(MODELS / "emoji")
RECIPE = Recipe(Layout("a cat"), Settings(num_steps=2), 3)


@pytest.fixture(autouse=True)
def nothing_is_fetched_or_converted(monkeypatch):
    def never(*arguments: object, **_: object) -> None:
        raise AssertionError(f"asked for {arguments}")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", never)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    monkeypatch.setattr(reground_jax.convert.locate, "convert", never)
    monkeypatch.setattr(reground_jax.convert.locate, "resolve", never)
    monkeypatch.setattr(reground_jax.convert.conversion, "convert", never)


def image(folder: Path, checkpoint: str | None, checksum: str | None) -> Path:
    recipe = dataclasses.replace(RECIPE, checkpoint=checkpoint, checksum=checksum)
    save_png(folder / "image.png", np.zeros((8, 8, 3), np.uint8), recipe)
    return folder / "image.png"


def error(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert main(["generate", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


NAMES = [
    "attacker/evil-model", "attacker/evil-model@main", "/etc/passwd", "/", ".", "..",
    "//host/share", "\\\\host\\share", "https://host/model", "file:///etc", "gs://bucket/model",
    "~nobody/model", "~/model", "nowhere", "emoji2", "", " ", "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("checksum", [EMOJI.checksum, None], ids=["checksum", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_recipe_is_not_followed(name, checksum, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = error(capsys, "--from", str(image(tmp_path, name, checksum)))
    assert "add --model" in line
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


@pytest.mark.parametrize(
    "name", ["//host/share", "\\\\host\\share", "/\\host", "http://host/x", "~nobody", "a\0b"]
)
def test_names_that_may_mean_another_machine_are_no_paths(name):
    assert local_path(name) is None


def test_a_folder_or_file_that_would_need_conversion_is_not_opened(tmp_path, capsys):
    (tmp_path / "diffusers" / "unet").mkdir(parents=True)
    (tmp_path / "diffusers" / "model_index.json").write_text("{}")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    for name in ("diffusers", "model.ckpt"):
        path = image(tmp_path, str(tmp_path / name), EMOJI.checksum)
        assert "add --model" in error(capsys, "--from", str(path))


def test_a_model_directory_is_taken_by_its_checksum_alone(tmp_path, capsys, monkeypatch):
    """Before its arrays or its tokenizer are looked into: here, there are no arrays."""
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(MODELS / "emoji" / name, directory / name)
    source = image(tmp_path, str(directory), EMOJI.checksum)
    assert generate.recorded_model(str(source), read_recipe(source)) == directory
    source = image(tmp_path, str(directory), "0123456789abcdef")
    line = error(capsys, "--from", str(source))
    assert "(checksum '0123456789ab')" in line and EMOJI.checksum[:12] in line
    source = image(tmp_path, str(directory), None)
    assert "no model directory with its checksum was found" in error(capsys, "--from", str(source))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_model_is_taken_by_name_and_by_both_checksums(name, tmp_path):
    """PNGs of earlier versions have the checksum of the arrays."""
    description = read_description(MODELS / name)
    for checksum in (description.checksum, description.info["checksum"], None):
        source = image(tmp_path, name, checksum)
        assert generate.recorded_model(str(source), read_recipe(source)) == MODELS / name


def test_a_users_own_folder_of_a_built_in_name_is_found_by_its_checksum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODELS / "emoji", "emoji-parallel")
    source = image(tmp_path, "emoji-parallel", EMOJI.checksum)
    found = generate.recorded_model(str(source), read_recipe(source))
    assert found == tmp_path / "emoji-parallel"


def test_another_model_that_the_user_names_is_taken_with_a_warning(tmp_path):
    source = str(image(tmp_path, "attacker/evil-model", "0" * 64))
    arguments = build_parser().parse_args(["generate", "--from", source, "--model", "emoji"])
    with pytest.warns(UserWarning, match="made with model 'attacker/evil-model' .*will differ"):
        directory, recipe = generate.choose_model(arguments, read_recipe(source))
    assert directory == MODELS / "emoji"
    assert (recipe.checkpoint, recipe.checksum) == ("emoji", EMOJI.checksum)


def test_what_a_recipe_will_cost_is_said_before_the_work(tmp_path, capsys, monkeypatch):
    """In a line, with the size that the model has where the recipe names none."""

    def stop(*_: object, **__: object) -> None:
        raise ValueError("stopped before loading")

    monkeypatch.setattr(generate, "load", stop)
    source = image(tmp_path, "emoji", EMOJI.checksum)
    assert main(["generate", "--from", str(source), "--out", str(tmp_path / "out.png")]) == 2
    said, failed = capsys.readouterr().err.splitlines()
    assert said == f"reground-jax: {source}: 64x64 pixels, 2 steps, 0 boxes, model 'emoji'"
    assert "stopped before loading" in failed
    assert main(["generate", "--from", str(source), "--height", "128", "--out", str(tmp_path)]) == 2
    assert "64x128 pixels" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(generate, "load", never)
    (tmp_path / "file").touch()
    line = error(capsys, "a cat", "--out", str(tmp_path / "file" / "cat.png"))
    assert f"{tmp_path}/file" in line
    (tmp_path / "cat.boxes.png").mkdir()
    line = error(capsys, "a cat", "--box", "a cat@0,0,1,1", "--out", str(tmp_path / "cat.png"))
    assert "cat.boxes.png: Is a directory" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.boxes.png", "file"]

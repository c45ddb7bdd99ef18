"""A model's recommended settings: where they are kept, what depends on them, who uses them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from reground_jax.cli import batch, compare, generate, main
from reground_jax.cli.sampling import Found
from reground_jax.convert.locate import BUILT_IN, MODELS
from reground_jax.images import read_recipe
from reground_jax.model import read_description, read_model, write_model
from reground_jax.settings import Settings
from reground_jax.storage.checkpoint import CheckpointError
from reground_jax.training.package import package
from tests.batch_cases import generate as run_batch
from tests.batch_cases import refusal
from tests.batch_stub import CHECKSUM

SUITS = {"guidance_scale": 4.0, "solver": "dpmpp_2m", "num_steps": 20}


@pytest.fixture
def copy(tiny_model_dir, tmp_path) -> Path:
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def edit(directory: Path, recommended: object) -> Path:
    path = directory / "config.json"
    content = json.loads(path.read_text()) | {"recommended": recommended}
    path.write_text(json.dumps(content))
    return directory


# ---- the directory


def test_the_built_in_models_recommend_what_their_cards_were_measured_with():
    for name in BUILT_IN:
        assert read_description(MODELS / name).recommended == SUITS


def test_a_model_is_the_same_model_whatever_it_recommends(copy):
    before = read_description(copy)
    assert before.recommended == read_model(copy).recommended == {}
    after = read_description(edit(copy, SUITS))
    assert after.recommended == read_model(copy).recommended == SUITS
    assert (after.checksum, after.info) == (before.checksum, before.info)


@pytest.mark.parametrize(
    ("recommended", "sentence"),
    [
        ({"guidance": 4}, "settings field 'guidance' is unknown: did you mean 'guidance_scale'"),
        ({"num_steps": 0}, "recommended: num_steps is 0"),
        ({"eta": 0.5}, "only solver 'ddim' takes eta"),
        ([20], "recommended"),
        (None, "recommended"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(recommended, sentence, copy, tmp_path):
    with pytest.raises(CheckpointError, match="config.json cannot be used: ") as caught:
        read_description(edit(copy, recommended))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_they_are_written_and_packaged(copy, tmp_path):
    model = read_model(copy)
    from reground_jax.storage.checkpoint import flatten

    def write(name: str, recommended: dict) -> None:
        arrays = ((path, np.asarray(array)) for path, array in flatten(model.params))
        write_model(
            tmp_path / name, model.config, arrays, model.tokenizer_json, {},
            recommended=recommended,
        )  # fmt: skip

    write("written", SUITS)
    assert read_model(tmp_path / "written").recommended == SUITS
    write("plain", {})
    assert "recommended" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    with pytest.raises(ValueError, match="num_steps is 0"):
        write("wrong", {"num_steps": 0})
    assert not (tmp_path / "wrong").exists()

    package(tmp_path / "written", tmp_path / "packaged", None)
    assert read_description(tmp_path / "packaged").recommended == SUITS
    package(tmp_path / "written", tmp_path / "packaged", None, {"num_steps": 5})
    assert read_description(tmp_path / "packaged").recommended == {"num_steps": 5}


def test_info_shows_them_as_options_and_the_default_model_without_a_name(copy, capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(str(MODELS / "emoji"))
    assert "recommended   --guidance-scale 4 --solver dpmpp_2m --steps 20\n" in shown
    assert main(["info", str(copy)]) == 0
    assert "recommended" not in capsys.readouterr().out
    assert main(["info", str(edit(copy, {"gamma": [0.3, 0, 0.7], "height": None}))]) == 0
    assert "recommended   --gamma 0.3,0,0.7\n" in capsys.readouterr().out


# ---- the commands


class Asked(Exception):
    """Raised in the place of the work, with the settings that it was to have."""


@pytest.fixture
def asked(monkeypatch):
    """Gives a function: the settings of a command, on the emoji model, that draws nothing."""
    seen: list[Settings] = []

    def sample(pipe, layouts, settings, seeds, **_):
        seen.append(settings)
        return [np.zeros((8, 8, 3), np.uint8) for _ in layouts]

    for command in (generate, compare):
        monkeypatch.setattr(command, "load", lambda *_, **__: None)
        monkeypatch.setattr(command, "sample", sample)

    def settings_of(*argv: str) -> list[Settings]:
        seen.clear()
        assert main(argv) == 0
        return list(seen)

    return settings_of


def test_a_command_without_flags_uses_them(asked, tmp_path):
    out = str(tmp_path / "out.png")
    assert asked("generate", "a cat", "--out", out) == [Settings(**SUITS, dtype="float32")]
    recipe = read_recipe(out)
    assert (recipe.settings, recipe.checkpoint) == (Settings(**SUITS, dtype="float32"), "emoji")
    given = asked("generate", "a cat", "--out", out, "--steps", "7", "--sampler", "ddim")
    assert given == [Settings(guidance_scale=4, num_steps=7, solver="ddim", dtype="float32")]
    columns = asked("compare", "a cat", "--out", out, "--columns", "sequential")
    assert columns == [Settings(**SUITS, wiring="sequential", dtype="float32")]


def test_an_image_is_made_again_with_its_own_settings(asked, tmp_path):
    out, again = str(tmp_path / "out.png"), str(tmp_path / "again.png")
    asked("generate", "a cat", "--out", out, "--steps", "7", "--solver", "plms", "--cfg", "7.5")
    assert asked("generate", "--from", out, "--out", again) == [
        Settings(num_steps=7, dtype="float32")
    ]


def test_a_run_that_was_begun_before_is_not_mixed_with_them(
    stub, ten, tmp_path, capsys, monkeypatch
):
    """As by an earlier version, whose defaults were the same for every model."""
    out = tmp_path / "out"
    assert run_batch(ten, out) == 0
    before = (out / "run.json").read_bytes()
    monkeypatch.setattr(batch, "find_model", lambda *_: Found(Path("stub"), CHECKSUM, SUITS))
    message = refusal(capsys, ten, out)
    for difference in (
        "guidance_scale 7.5 -> 4.0",
        "num_steps 50 -> 20",
        "solver plms -> dpmpp_2m",
    ):
        assert difference in message
    assert "Repeat the old ones to resume it" in message
    assert (out / "run.json").read_bytes() == before
    old = ["--guidance-scale", "7.5", "--steps", "50", "--solver", "plms"]
    assert run_batch(ten, out, *old) == 0
    assert run_batch(ten, tmp_path / "new") == 0
    written = json.loads((tmp_path / "new" / "run.json").read_text())["settings"]
    assert Settings.from_json(written) == Settings(**SUITS, dtype="float32")


def test_the_identity_of_a_run_does_not_depend_on_how_lists_are_written(stub, ten, tmp_path):
    texts = []
    for number, gammas in enumerate((["0.3,1"], ["0.3", "1"], ["0.3,", "1.0"])):
        assert run_batch(ten, tmp_path / str(number), "--gammas", *gammas) == 0
        texts.append((tmp_path / str(number) / "run.json").read_bytes())
    assert len(set(texts)) == 1 and json.loads(texts[0])["gammas"] == [0.3, 1.0]

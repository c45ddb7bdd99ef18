"""Model directories of format 1, from earlier versions, are still read, checksums and all."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reground_jax.convert.locate import MODELS
from reground_jax.model import read_model, write_model
from reground_jax.storage import format1
from reground_jax.storage.checkpoint import CheckpointError, flatten, save_arrays
from reground_jax.storage.description import FORMAT, checksums, is_model_directory, read_description
from reground_jax.storage.facts import combined, digest, word_sum
from reground_jax.training.experiment import changes_since
from reground_jax.training.optimizer import optimizer
from reground_jax.training.state import initial_state, load_state, save_state
from tests.model_directories import ARRAYS, GATE, TOKENIZER, edit, refused, written
from tests.models import TINY
from tests.training import tiny_recipe

OLD_GATE = "unet/mid_block/attentions/0/block/fuser/alpha_attn"


def old_parts() -> dict[str, Any]:
    """The config of TINY in format 1."""
    parts = TINY.to_json()
    unet, (text,) = parts["unet"], parts.pop("text_encoders")
    unet["grounded"] = unet.pop("grounding") == "text"
    del unet["inpainting"], unet["transformer_layers"]
    return parts | {"text_encoder": text["network"], "tokenizer": text["tokenizer"]}


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory) -> Path:
    """TINY in a directory of format 1; no test changes it."""
    directory = written(tmp_path_factory.mktemp("old") / "model")
    arrays = {format1.stored_name(name): array for name, array in ARRAYS.items()}
    shutil.rmtree(directory / "arrays")
    save_arrays(directory / "arrays", arrays.items())
    content = json.loads((directory / "config.json").read_text())
    content["info"] |= checksums(TINY, TOKENIZER, format1.FORMAT) | {
        "checksum": combined(digest(name, array) for name, array in arrays.items()),
        "sums": combined(word_sum(name, array) for name, array in arrays.items()),
    }
    facts = {name: content[name] for name in ("groups", "info")}
    (directory / "config.json").write_text(
        json.dumps({"format": format1.FORMAT} | facts | old_parts())
    )
    return directory


@pytest.mark.parametrize(
    ("name", "arrays", "whole"),
    [
        ("emoji", "4b0a6694fb52cfeb", "991304a519e70a32"),
        ("emoji-parallel", "21fc4ea1b24aa4d3", "6e53cc8232c8ca03"),
    ],
)
def test_the_built_in_models_keep_the_checksums_that_recipes_and_batches_name(name, arrays, whole):
    description = read_description(MODELS / name)
    assert description.format == format1.FORMAT
    assert description.info["checksum"].startswith(arrays)
    assert description.checksum.startswith(whole)


def test_an_old_model_is_read_as_what_it_was(directory):
    model = read_model(directory, check=True)
    assert model.config == TINY
    leaves = dict(flatten(model.params))
    assert leaves.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(leaves[name], array)
    assert is_model_directory(directory)


def test_arrays_have_the_same_place_under_both_names():
    assert format1.stored_name(GATE) == OLD_GATE and format1.current_name(OLD_GATE) == GATE
    for name in ARRAYS:
        assert format1.current_name(format1.stored_name(name)) == name
        assert format1.current_name(name) == name


def test_damage_to_an_old_model_is_found(directory):
    arrays = {format1.stored_name(name): array for name, array in ARRAYS.items()}
    shutil.rmtree(directory / "arrays")
    save_arrays(
        directory / "arrays", (arrays | {OLD_GATE: np.asarray(arrays[OLD_GATE] + 1)}).items()
    )
    refused(directory, "its arrays are damaged")
    shutil.rmtree(directory / "arrays")
    save_arrays(directory / "arrays", ARRAYS.items())  # under names that it cannot have
    refused(directory, r"array unet/.*/blocks/0/.* but its config.json requires None")


def test_a_model_based_on_an_old_one_has_the_current_format(directory, tmp_path):
    changed = ARRAYS | {name: np.asarray(a + 1) for name, a in ARRAYS.items() if "/fuser/" in name}
    write_model(tmp_path / "top", TINY, changed.items(), TOKENIZER, {}, base=directory)
    whole = tmp_path / "whole"
    write_model(whole, TINY, changed.items(), TOKENIZER, {})
    assert json.loads((tmp_path / "top" / "config.json").read_text())["format"] == FORMAT
    on_base, alone = read_description(tmp_path / "top"), read_description(whole)
    assert on_base.checksum == alone.checksum  # with or without a base
    leaves = dict(flatten(read_model(tmp_path / "top", check=True).params))
    assert all((leaves[name] == changed[name]).all() for name in changed)
    size = sum(path.stat().st_size for path in (tmp_path / "top").rglob("*"))
    assert size < sum(path.stat().st_size for path in whole.rglob("*")) / 2


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("unet", "grounded", 5, "grounded is 5: it must be true or false"),
        ("unet", "inpainting", False, "has no field inpainting in format 'reground-jax/1'"),
        ("unet", "in_channels", "four", "in_channels is 'four'"),
        ("unet", "in_channels", 9, "config.json was changed after"),  # valid for inpainting
        ("unet", "grounded", False, "config.json was changed after"),
        ("text_encoder", "num_heads", 5, "does not divide into 5 heads"),
        ("tokenizer", "max_length", 100, "texts are 100 tokens long"),
    ],
)
def test_an_edit_of_an_old_config_is_one_sentence(part, name, value, message, directory):
    edit(directory, lambda content: content[part].update({name: value}))
    refused(directory, message)


def test_parts_of_an_old_config_that_are_missing_or_new_are_named(directory):
    edit(directory, lambda content: content.update(text_encoders=[]))
    refused(directory, "has parts .*'text_encoders'.* expected .*: the checkpoint was written by")
    edit(directory, lambda content: (content.pop("text_encoders"), content.pop("tokenizer")))
    refused(directory, "has parts .* expected .*'tokenizer'")
    edit(directory, lambda content: content.update(old_parts(), unet=[]))
    refused(directory, r"UNetConfig is \[\]: it must be a JSON object")


def test_inpainting_is_told_by_the_channels_of_an_old_model(directory):
    edit(directory, lambda content: content["info"].pop("config_checksum"))
    edit(directory, lambda content: content["unet"].update(in_channels=9))
    assert read_description(directory).config.unet.inpainting
    edit(directory, lambda content: content["unet"].update(in_channels=8))
    with pytest.raises(CheckpointError, match="8 input and 4 output channels"):
        read_description(directory)


def test_a_training_folder_of_an_earlier_version_is_resumed(tmp_path):
    experiment = {"stage": "grounding", "model": json.loads(json.dumps(old_parts()))}
    given = {"stage": "grounding", "model": TINY.to_json()}
    checkpoint = tmp_path / "00000002"
    assert (
        changes_since({"experiment": experiment}, given, checkpoint=checkpoint, accept=False) == []
    )
    wider = {"stage": "grounding", "model": old_parts() | {"vae": {"latent_channels": 8}}}
    with pytest.raises(ValueError, match="model.vae.latent_channels 8 -> 4"):
        changes_since({"experiment": wider}, given, checkpoint=checkpoint, accept=False)
    rule = optimizer(tiny_recipe())
    old = initial_state({OLD_GATE: np.float32(0.5)}, rule)
    like = initial_state({GATE: np.zeros((), np.float32)}, rule)
    found = load_state(save_state(tmp_path, old, {}), like)
    assert found.params[GATE] == found.average[GATE] == 0.5

"""Models with an image encoder on disk, and those without, which stay as they were."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from reground_jax.cli import main
from reground_jax.config import CLIPVisionConfig, ModelConfig, UNetConfig, check_together
from reground_jax.model import build, leaf_shapes, random_params, read_model, write_model
from reground_jax.storage import format1
from reground_jax.storage.checkpoint import CheckpointError, flatten
from reground_jax.storage.description import FORMAT, checksums, read_description
from reground_jax.training.initial import changed, completed
from tests.model_directories import TOKENIZER, edit, refused
from tests.models import TINY

IMAGE = CLIPVisionConfig(
    width=8, num_layers=1, num_heads=2, mlp_width=16, patch_size=4, image_size=8,
    projection_width=TINY.unet.text_width,
)  # fmt: skip
WITH = dataclasses.replace(TINY, image_encoder=IMAGE)


@pytest.fixture
def directory(tmp_path) -> Path:
    write_model(tmp_path / "model", WITH, random_params(WITH, 0), TOKENIZER, {"source": "random"})
    return tmp_path / "model"


def test_a_model_with_an_image_encoder_comes_back(directory):
    model = read_model(directory, check=True)
    assert model.config == WITH
    assert model.config.networks == (
        "text_encoder",
        "unet",
        "vae",
        "image_encoder",
        "image_project",
    )
    expected, found = dict(random_params(WITH, 0)), dict(flatten(model.params))
    assert found.keys() == expected.keys() == leaf_shapes(WITH).keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    width = TINY.unet.text_width
    assert found["image_project/kernel"].shape == (width, width)
    assert model.info["parameters"]["image_project"] == width**2
    encoder = [array.size for name, array in expected.items() if name.startswith("image_encoder/")]
    assert model.info["parameters"]["image_encoder"] == sum(encoder)


def test_info_shows_an_image_encoder(directory, capsys):
    assert main(["info", str(directory)]) == 0
    shown = capsys.readouterr().out
    assert "image_encoder 0.00 M parameters" in shown and "image_encoder: width=8" in shown


def test_a_model_on_a_base_without_an_image_encoder_adds_only_that(directory, tmp_path):
    write_model(tmp_path / "base", TINY, random_params(TINY, 0), TOKENIZER, {})
    write_model(
        tmp_path / "top", WITH, random_params(WITH, 0), TOKENIZER, {}, base=tmp_path / "base"
    )
    top = read_description(tmp_path / "top")
    assert top.groups == 1 and top.checksum == read_description(directory).checksum
    assert read_model(tmp_path / "top", check=True).config == WITH


def test_without_one_nothing_of_it_is_stored(tmp_path):
    write_model(tmp_path / "model", TINY, random_params(TINY, 0), TOKENIZER, {})
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "image_encoder" not in content
    assert set(content["info"]["parameters"]) == {"text_encoder", "unet", "vae", "grounding"}
    with pytest.raises(ValueError, match="no network 'image_encoder': it must be one of text_enc"):
        build(TINY, "image_encoder", nnx.Rngs(0))


@pytest.mark.parametrize("format", [FORMAT, format1.FORMAT])
@pytest.mark.parametrize(
    ("config", "checksum"), [(ModelConfig(), "b8c05a66407261f3"), (TINY, "5d5070600c077ee7")]
)
def test_models_without_one_keep_their_checksums(config, checksum, format):
    assert checksums(config, "", format)["config_checksum"].startswith(checksum)


def test_the_checksum_covers_the_image_encoder_even_at_its_defaults():
    plain = ModelConfig()
    default = dataclasses.replace(plain, image_encoder=CLIPVisionConfig())
    other = dataclasses.replace(plain, image_encoder=CLIPVisionConfig(num_layers=12))
    assert default.changes() == plain.changes() | {"image_encoder": {}}
    assert len({checksums(c, "")["config_checksum"] for c in (plain, default, other)}) == 3


def test_configs_round_trip_through_json():
    for config in (TINY, WITH):
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "CLIPVisionConfig is None"),
        ({"novelty": 1}, "CLIPVisionConfig has no field novelty"),
        ({"width": "8"}, r"CLIPVisionConfig\.width is '8'"),
        ({"projection_width": 13}, "embeddings of width 13, but the U-Net reads .* 12: they must"),
        (IMAGE.__dict__ | {"num_layers": 2}, "config.json was changed"),
    ],
)
def test_an_edit_of_it_is_one_sentence(value, message, directory):
    edit(directory, lambda content: content.update(image_encoder=value))
    refused(directory, message)


def test_its_arrays_must_all_be_there(directory, tmp_path):
    edit(directory, lambda content: content["info"]["parameters"].pop("image_project"))
    refused(directory, "has no 'image_project'")
    with pytest.raises(CheckpointError, match="missing arrays: image_encoder/"):
        write_model(tmp_path / "other", WITH, random_params(TINY, 0), TOKENIZER, {})


def test_widths_must_fit():
    check_together(WITH)
    wrong = dataclasses.replace(WITH, image_encoder=CLIPVisionConfig())
    with pytest.raises(
        ValueError, match="writes embeddings of width 768, but the U-Net reads text"
    ):
        check_together(wrong)
    check_together(ModelConfig(UNetConfig(), image_encoder=CLIPVisionConfig()))


def test_training_passes_an_image_encoder_on():
    assert changed(WITH, {"vae": {"scaling_factor": 0.5}}).image_encoder == IMAGE
    leaves = dict(random_params(WITH, 0))
    kept = completed(WITH, leaves, seed=1)
    assert kept.keys() == leaves.keys()
    assert all((kept[name] == leaves[name]).all() for name in leaves)

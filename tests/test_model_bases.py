"""Model directories that are based on others, and bases that lead nowhere."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from reground_jax import model as models
from reground_jax.model import (
    MAX_BASES,
    random_params,
    read_description,
    read_model,
    write_model,
)
from reground_jax.storage.checkpoint import CheckpointError, flatten
from tests.model_directories import ARRAYS, TOKENIZER, edit, refused
from tests.models import TINY


@pytest.mark.parametrize("base", [".", "../model", "./.", "../model/arrays/.."])
def test_a_model_that_is_its_own_base_is_refused(base, directory):
    edit(directory, lambda content: content.update(base=base))
    refused(directory, "its base leads back to .*: set base in config.json to the directory")


def test_a_model_that_is_its_own_base_by_a_link_is_refused(directory):
    (directory.parent / "link").symlink_to(directory)
    edit(directory, lambda content: content.update(base="../link"))
    refused(directory, "its base leads back to")


def test_models_that_are_each_others_base_are_refused(directory):
    other = Path(shutil.copytree(directory, directory.parent / "other"))
    edit(directory, lambda content: content.update(base="../other"))
    edit(other, lambda content: content.update(base="../model"))
    refused(directory, "its base leads back to")


def test_a_base_may_stand_on_another_but_not_without_end(directory):
    """`--base` of a packaged model may name one that has a base itself."""
    folder = directory.parent
    before = dict(flatten(read_model(directory).params))
    for index in range(1, MAX_BASES + 2):
        below = folder / (f"model-{index - 1}" if index > 1 else "model")
        top = Path(shutil.copytree(directory, folder / f"model-{index}"))
        shutil.rmtree(top / "arrays")
        edit(top, lambda content, b=below: content.update(base=f"../{b.name}", groups=0))
    deepest = dict(flatten(read_model(folder / f"model-{MAX_BASES - 1}").params))
    assert all((deepest[name] == before[name]).all() for name in before)
    refused(folder / f"model-{MAX_BASES}", "has a chain of 8 bases or more: too many")
    refused(folder / f"model-{MAX_BASES + 1}", "has a chain of 8 bases or more: too many")
    with pytest.raises(CheckpointError, match="has a chain of 7 bases: use one of them"):
        write_model(
            folder / "top", TINY, ARRAYS.items(), TOKENIZER, {},
            base=folder / f"model-{MAX_BASES - 1}",
        )  # fmt: skip


def test_a_base_may_hold_arrays_that_the_model_has_no_use_for(directory, tmp_path):
    """Plain Stable Diffusion on a grounded model, which used to be written but not readable."""
    plain = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, grounding=None))
    arrays = dict(random_params(plain, 0)) | {
        name: array for name, array in ARRAYS.items() if name in models.leaf_shapes(plain)
    }
    write_model(tmp_path / "plain", plain, arrays.items(), TOKENIZER, {}, base=directory)
    assert read_description(tmp_path / "plain").groups == 0  # all are in the base
    assert dict(flatten(read_model(tmp_path / "plain").params)).keys() == arrays.keys()

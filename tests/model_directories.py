"""A small model directory to damage, for the tests of model directories."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reground_jax.emoji.tokenizer import emoji_tokenizer
from reground_jax.emoji.world import WorldConfig
from reground_jax.model import random_params, read_model, write_model
from reground_jax.storage.checkpoint import CheckpointError, save_arrays
from tests.models import TINY

TOKENIZER, _ = emoji_tokenizer(WorldConfig())
ARRAYS = dict(random_params(TINY, 0))
GATE = "unet/mid_block/attentions/0/blocks/0/fuser/alpha_attn"


def written(directory: Path) -> Path:
    """A model directory of one group."""
    write_model(directory, TINY, ARRAYS.items(), TOKENIZER, {"source": "random"})
    return directory


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    """Replaces the model's arrays, and leaves config.json as it is."""
    shutil.rmtree(directory / "arrays")
    save_arrays(directory / "arrays", arrays.items())


def refused(directory: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_model(directory)
    assert len(str(caught.value).splitlines()) == 1

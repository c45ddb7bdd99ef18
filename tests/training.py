"""A model and data small enough that training takes seconds."""

import dataclasses
from pathlib import Path

import numpy as np

from reground_jax.config import (
    CLIPTextConfig,
    ModelConfig,
    NoiseSchedule,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from reground_jax.emoji.tokenizer import emoji_tokenizer, vocabulary_size
from reground_jax.emoji.world import WorldConfig
from reground_jax.layout import Layout
from reground_jax.training.config import StageConfig
from reground_jax.training.data import Example
from reground_jax.training.opening import Stage, open_stage
from reground_jax.training.recipe import Recipe
from reground_jax.training.sources import Data

SIZE = 16  # pixels: TINY's autoencoder halves once, giving 8x8 latents
TOKENIZER, LENGTHS = emoji_tokenizer(WorldConfig())
TINY = ModelConfig(
    unet=UNetConfig(
        in_channels=2, out_channels=2, block_channels=(8,), layers_per_block=(1,), num_heads=(2,),
        down_attention=(True,), up_attention=(False,), text_width=8, norm_groups=4, sample_size=8,
        grounding=None,
    ),
    vae=VAEConfig(latent_channels=2, block_channels=(8, 8), layers_per_block=1, norm_groups=4),
    text_encoders=(
        TextEncoderConfig(
            CLIPTextConfig(
                vocab_size=vocabulary_size(TOKENIZER), width=8, num_layers=1, num_heads=2,
                mlp_width=16, max_length=16, eos_token_id=LENGTHS.eos_token_id,
            ),
            dataclasses.replace(LENGTHS, max_length=16),
        ),
    ),
    schedule=NoiseSchedule(prediction_type="v_prediction", clip_sample=False),
)  # fmt: skip


CLASSES = 3  # of the labels of Squares


class Squares:
    """A cheap source: a colored square on a plain background."""

    def batch(self, index: int, batch_size: int) -> list[Example]:
        return [self._example(index * batch_size + i) for i in range(batch_size)]

    def _example(self, seed: int) -> Example:
        rng = np.random.default_rng(seed)
        image = np.full((SIZE, SIZE, 3), rng.integers(0, 256, 3), np.uint8)
        x, y = rng.integers(0, SIZE // 2, 2)
        image[y : y + 8, x : x + 8] = rng.integers(0, 256, 3)
        box = (x / SIZE, y / SIZE, (x + 8) / SIZE, (y + 8) / SIZE)
        labels = np.zeros((SIZE, SIZE), np.uint8)
        labels[y : y + 8, x : x + 8] = 1 + seed % (CLASSES - 1)
        layout = Layout(prompt="a cat on the grass", phrases=["a cat"], boxes=[box])
        return Example(image, layout, labels)


def squares_stage(
    kind: str, out: Path, base: Path, monkeypatch, fusers: Path | None = None, **changes
) -> Stage:
    squares = Squares()
    data = Data(squares, lambda count: squares.batch(0, count), None, classes=CLASSES)
    monkeypatch.setattr("reground_jax.training.opening.open_data", lambda source, folder: data)
    values = {"source": {}, "recipe": tiny_recipe(), "save_dtype": "float32", "num_samples": 2}
    return open_stage(kind, StageConfig(**(values | changes)), out, base=base, fusers=fusers)


def tiny_recipe(**changes) -> Recipe:
    numbers = {"num_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 1}
    return Recipe(**(numbers | {"log_every": 1, "sample_every": 3} | changes))

"""Models to benchmark: sizes with random weights, none of them trivial, and layouts for them.

tiny    runs in about a second, for tests
emoji   the size of the built-in small model (training/configs/emoji64), 64x64 images
sd14    GLIGEN on Stable Diffusion 1.4, 512x512 images: U-Net and VAE at their published size

The vocabulary is bytes only (515 tokens), so that no file from the Hub is needed; in `sd14` this
shrinks the text encoder's embedding table and changes nothing else.
"""

import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

from reground_jax.basics.fields import check_name
from reground_jax.config import (
    CLIPTextConfig,
    ModelConfig,
    NoiseSchedule,
    TextEncoderConfig,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)
from reground_jax.layout import Layout
from reground_jax.model import Model, random_params
from reground_jax.storage.checkpoint import unflatten

Preset = Literal["tiny", "emoji", "sd14"]
PRESETS: tuple[Preset, ...] = get_args(Preset)

VOCABULARY, BOS, EOS = 515, 513, 514
COUNTS = ("one", "two", "three", "four", "five", "six")
PLACES = ("grass", "beach", "street", "snow")
MERGES = "#version: 0.2\nt h\n"
# As in Stable Diffusion 1.4's scheduler config.
SCHEDULE = NoiseSchedule(
    steps_offset=1, set_alpha_to_one=False, clip_sample=False, skip_prk_steps=True
)


def preset_config(name: Preset | str) -> ModelConfig:
    """Raises ValueError for an unknown name."""
    check_name("preset", name, PRESETS)
    unet, vae, text = {"tiny": _tiny, "emoji": _emoji, "sd14": _sd14}[name]()
    tokens = TokenizerConfig(text.max_length, BOS, EOS, pad_token_id=EOS)
    return ModelConfig(unet, vae, (TextEncoderConfig(text, tokens),), SCHEDULE)


def _text(**shape: Any) -> CLIPTextConfig:
    return CLIPTextConfig(vocab_size=VOCABULARY, eos_token_id=EOS, **shape)


def _two_levels(**shape: Any) -> UNetConfig:
    return UNetConfig(
        layers_per_block=(1, 1), num_heads=(4, 4), down_attention=(True, False),
        up_attention=(False, True), sample_size=8, **shape,
    )  # fmt: skip


def _tiny() -> tuple[UNetConfig, VAEConfig, CLIPTextConfig]:
    return (
        _two_levels(block_channels=(16, 32), text_width=16, norm_groups=4),
        VAEConfig(block_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4),
        _text(width=16, num_layers=1, num_heads=4, mlp_width=32),
    )


def _emoji() -> tuple[UNetConfig, VAEConfig, CLIPTextConfig]:
    return (
        _two_levels(
            in_channels=12, out_channels=12, block_channels=(96, 192), text_width=128,
            norm_groups=16,
        ),
        VAEConfig(
            latent_channels=12, block_channels=(16, 24, 64, 96), layers_per_block=1, norm_groups=8,
            scaling_factor=1.0,
        ),
        _text(width=128, num_layers=3, num_heads=4, mlp_width=512, max_length=32),
    )  # fmt: skip


def _sd14() -> tuple[UNetConfig, VAEConfig, CLIPTextConfig]:
    return UNetConfig(), VAEConfig(), _text()


def random_model(name: Preset | str, seed: int = 0) -> Model:
    """The preset's model in memory, float32."""
    config = preset_config(name)
    params = unflatten(random_params(config, seed))
    return Model(config, params, tokenizer_json(), {"source": f"random weights, preset {name}"})


def tokenizer_json() -> str:
    """A CLIP-style tokenizer with only the bytes, one merge and the two special tokens."""
    from reground_jax.convert.tokenizers import build_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        merges = Path(folder) / "merges.txt"
        merges.write_text(MERGES)
        return build_tokenizer(merges).json


def layouts(count: int) -> list[Layout]:
    """Distinct layouts with two boxes each, in words that the built-in model also knows."""
    return [
        Layout(
            prompt=f"a cat and {COUNTS[number % 6]} dogs on the {PLACES[number // 6 % 4]}",
            phrases=["a cat", "dogs"],
            boxes=[(0.05, 0.2, 0.45, 0.9), (0.55, 0.3, 0.95, 0.5 + 0.4 / (1 + number))],
            negative_prompt="black",
        )
        for number in range(count)
    ]

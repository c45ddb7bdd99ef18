"""The shapes of CLIP's two transformers, and the settings of its tokenizer; the rest: config.py."""

from dataclasses import dataclass
from typing import Literal

from reground_jax.basics.fields import check_fields
from reground_jax.settings import MAX_SIDE

WIDTH, HEADS, LAYERS = (1, 2**16), (1, 2**14), (1, 128)
TOKENS, LENGTH = 2**20, 2**12  # in a vocabulary; of a text in tokens


@dataclass(frozen=True)
class CLIPTextConfig:
    """CLIP's text transformer: ViT-L/14 (SD1.x) or OpenCLIP ViT-H/14 (SD2.x)."""

    vocab_size: int = 49408
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    max_length: int = 77
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    # Pooled output is read at the first `eos_token_id`; None reads it at the largest token id
    # (which is what eos_token_id=2 means in config files).
    eos_token_id: int | None = None
    clip_skip: int = 0  # the last layers that prompts skip, but not phrases

    def __post_init__(self) -> None:
        check_fields(
            self, vocab_size=(1, TOKENS), width=WIDTH, num_layers=LAYERS, num_heads=HEADS,
            mlp_width=WIDTH, max_length=(3, LENGTH), eos_token_id=(0, TOKENS),
            clip_skip=(0, self.num_layers - 1),
        )  # fmt: skip
        if self.width % self.num_heads:
            raise ValueError(
                f"CLIPTextConfig: width {self.width} does not divide into {self.num_heads} heads; "
                "choose a number that divides it"
            )


@dataclass(frozen=True)
class CLIPVisionConfig:
    """CLIP's image transformer with its projection to CLIP's joint space; by default ViT-L/14."""

    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_width: int = 4096
    patch_size: int = 14
    image_size: int = 224  # side of the square images that it reads
    projection_width: int = 768  # P, of an image embedding
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"

    def __post_init__(self) -> None:
        check_fields(
            self, width=WIDTH, num_layers=LAYERS, num_heads=HEADS, mlp_width=WIDTH,
            patch_size=(1, MAX_SIDE), image_size=(1, MAX_SIDE), projection_width=WIDTH,
        )  # fmt: skip
        if self.width % self.num_heads:
            raise ValueError(
                f"CLIPVisionConfig: width {self.width} does not divide into {self.num_heads} "
                "heads; choose a number that divides it"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"CLIPVisionConfig: an image of {self.image_size} pixels does not divide into "
                f"patches of {self.patch_size}; choose a number that divides it"
            )

    @property
    def num_tokens(self) -> int:
        """Of an image: the class token, and one for each patch."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class CLIPConfig:
    """Both transformers, projected to one space of width `vision.projection_width`."""

    text: CLIPTextConfig = CLIPTextConfig()
    vision: CLIPVisionConfig = CLIPVisionConfig()


@dataclass(frozen=True)
class TokenizerConfig:
    """Tokenizer settings that are not in `tokenizer.json`."""

    max_length: int = 77
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407

    def __post_init__(self) -> None:
        ids = (0, TOKENS)
        check_fields(
            self, max_length=(3, LENGTH), bos_token_id=ids, eos_token_id=ids, pad_token_id=ids
        )


@dataclass(frozen=True)
class TextEncoderConfig:
    """A text encoder and the settings of its tokenizer."""

    network: CLIPTextConfig = CLIPTextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()

"""The shapes of the networks and the noise schedule: frozen values that go to JSON and back.

Fields say what they mean (`num_heads` is a number of heads). Other people's config files are
translated, and refused where they ask for something that is not built, in `convert/configs.py`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class UNetConfig:
    """A Stable Diffusion 1.x / 2.x U-Net, with or without GLIGEN's fusers.

    One entry per resolution level, highest resolution first: `block_channels`, `layers_per_block`,
    `num_heads`, `down_attention` (level has transformers on the way down). `up_attention` is in the
    order of the way up, lowest resolution first. The middle block always has one transformer.
    """

    in_channels: int = 4  # C latent channels, or 2C + 1 for an inpainting model
    out_channels: int = 4
    block_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    down_attention: tuple[bool, ...] = (True, True, True, False)
    up_attention: tuple[bool, ...] = (False, True, True, True)
    text_width: int = 768  # E, also the width of a phrase embedding
    norm_groups: int = 32
    sample_size: int = 64  # side of the latent that the checkpoint was trained on
    grounded: bool = True  # has fusers and a position net

    def __post_init__(self) -> None:
        levels = len(self.block_channels)
        for name in ("layers_per_block", "num_heads", "down_attention", "up_attention"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"UNetConfig.{name} has {len(getattr(self, name))} entries, but block_channels "
                    f"has {levels}: give one per level"
                )
        for channels, heads in zip(self.block_channels, self.num_heads, strict=True):
            if channels % heads or channels % self.norm_groups:
                raise ValueError(
                    f"UNetConfig: {channels} channels do not divide into {heads} heads and "
                    f"{self.norm_groups} norm groups; choose numbers that divide the channels"
                )

    @property
    def is_inpainting(self) -> bool:
        return self.in_channels == 2 * self.out_channels + 1


@dataclass(frozen=True)
class VAEConfig:
    """AutoencoderKL (Stable Diffusion's f8 autoencoder and its relatives)."""

    image_channels: int = 3
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215  # latents are multiplied by it before diffusion

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel along a side."""
        return 2 ** (len(self.block_channels) - 1)


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
    # (what configs that say eos_token_id=2 mean).
    eos_token_id: int | None = None


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process, and what the checkpoint's scheduler file says of time steps.

    None means that the file is silent, so each solver takes its own default, as diffusers'
    `from_config` does (its classes have different ones).
    """

    num_train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    steps_offset: int | None = None
    set_alpha_to_one: bool | None = None
    clip_sample: bool | None = None
    clip_sample_range: float | None = None
    skip_prk_steps: bool | None = None


@dataclass(frozen=True)
class TokenizerConfig:
    """What a `tokenizer.json` does not say of itself."""

    max_length: int = 77
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a model directory but its arrays."""

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text_encoder: CLIPTextConfig = CLIPTextConfig()
    schedule: NoiseSchedule = NoiseSchedule()
    tokenizer: TokenizerConfig = TokenizerConfig()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelConfig":
        """Inverse of `to_json`. Raises ValueError that names an unknown or missing part."""
        parts: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        if set(value) != set(parts):
            raise ValueError(
                f"model config has parts {sorted(value)}, expected {sorted(parts)}: "
                "the checkpoint was written by another version; convert it again"
            )
        return cls(**{name: from_json(kind, value[name]) for name, kind in parts.items()})


def from_json(kind: type[T], value: dict[str, Any]) -> T:
    """A config dataclass from its JSON form (lists become tuples). Unknown fields are an error."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(value) - known):
        raise ValueError(
            f"{kind.__name__} has no field {', '.join(unknown)}; it has {sorted(known)}"
        )
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})

"""The shapes of the networks and the noise schedule: frozen values that go to JSON and back.

Fields say what they mean (`num_heads` is a number of heads). Each class checks its own fields, with
bounds far above any model there is; `check_together` checks what they say of each other. Other
people's config files are translated, and refused where they ask for something that is not built, in
`convert/configs.py`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from reground_jax.fields import as_object, check_fields, check_range, typed
from reground_jax.settings import MAX_SIDE

T = TypeVar("T")

MAX_LEVELS = 8  # resolutions of a U-Net or autoencoder
CHANNELS, LAYERS, WIDTH = (1, 2**14), (1, 32), (1, 2**16)
TOKENS, LENGTH = 2**20, 2**12  # of a vocabulary; of a text
MAX_TRAIN_STEPS = 10_000


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
        check_fields(
            self, in_channels=CHANNELS, out_channels=CHANNELS, block_channels=CHANNELS,
            layers_per_block=LAYERS, num_heads=CHANNELS, text_width=WIDTH, norm_groups=CHANNELS,
            sample_size=(1, MAX_SIDE),
        )  # fmt: skip
        levels = len(self.block_channels)
        check_range("the number of UNetConfig's levels", levels, 1, MAX_LEVELS)
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

    def __post_init__(self) -> None:
        check_fields(
            self, image_channels=(3, 3), latent_channels=CHANNELS, block_channels=CHANNELS,
            layers_per_block=LAYERS, norm_groups=CHANNELS,
        )  # fmt: skip
        check_range("the number of VAEConfig's levels", len(self.block_channels), 1, MAX_LEVELS)
        for channels in self.block_channels:
            if channels % self.norm_groups:
                raise ValueError(
                    f"VAEConfig: {channels} channels do not divide into {self.norm_groups} norm "
                    "groups; choose numbers that divide the channels"
                )
        if self.scaling_factor <= 0:
            raise ValueError(
                f"VAEConfig.scaling_factor is {self.scaling_factor}: it must be above 0"
            )

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

    def __post_init__(self) -> None:
        check_fields(
            self, vocab_size=(1, TOKENS), width=WIDTH, num_layers=(1, 128), num_heads=CHANNELS,
            mlp_width=WIDTH, max_length=(3, LENGTH), eos_token_id=(0, TOKENS),
        )  # fmt: skip
        if self.width % self.num_heads:
            raise ValueError(
                f"CLIPTextConfig: width {self.width} does not divide into {self.num_heads} heads; "
                "choose a number that divides it"
            )


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

    def __post_init__(self) -> None:
        check_fields(self, num_train_steps=(1, MAX_TRAIN_STEPS))
        last = self.num_train_steps - 1
        if self.steps_offset is not None:
            check_range("NoiseSchedule.steps_offset", self.steps_offset, 0, last)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"NoiseSchedule: betas go from {self.beta_start} to {self.beta_end}, but they must "
                "be above 0, below 1, and not fall"
            )
        if self.clip_sample_range is not None and self.clip_sample_range <= 0:
            raise ValueError(
                f"NoiseSchedule.clip_sample_range is {self.clip_sample_range}: it must be above 0"
            )


@dataclass(frozen=True)
class TokenizerConfig:
    """What a `tokenizer.json` does not say of itself."""

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
        """Inverse of `to_json`. Raises ValueError that names an unknown, missing or wrong part."""
        parts: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        if set(value) != set(parts):
            raise ValueError(
                f"model config has parts {sorted(value)}, expected {sorted(parts)}: "
                "the checkpoint was written by another version; convert it again"
            )
        return cls(**{name: from_json(kind, value[name]) for name, kind in parts.items()})

    def changes(self) -> dict[str, dict[str, Any]]:
        """The fields that are not at their defaults, by part: all that is particular of a model.

        A field that is added later, at a default that means what was before, adds nothing to it.
        """
        ours, plain = self.to_json(), ModelConfig().to_json()
        return {
            part: {name: v for name, v in fields.items() if v != plain[part][name]}
            for part, fields in ours.items()
        }


def check_together(config: ModelConfig) -> None:
    """Raises ValueError unless the parts fit each other, so that nothing is read out of bounds."""
    unet, vae, text, tokens = config.unet, config.vae, config.text_encoder, config.tokenizer
    latent = vae.latent_channels
    if unet.out_channels != latent or unet.in_channels not in (latent, 2 * latent + 1):
        raise ValueError(
            f"the U-Net has {unet.in_channels} input and {unet.out_channels} output channels, but "
            f"the VAE's latents have {latent}: input must be as many, or {2 * latent + 1} for "
            "inpainting, and output as many"
        )
    if unet.text_width != text.width:
        raise ValueError(
            f"the U-Net reads texts of width {unet.text_width}, but the text encoder writes width "
            f"{text.width}: they must be equal"
        )
    if tokens.max_length > text.max_length:
        raise ValueError(
            f"texts are {tokens.max_length} tokens long, but the text encoder has "
            f"{text.max_length} places: tokenizer.max_length must not be above "
            "text_encoder.max_length"
        )
    ids = (tokens.bos_token_id, tokens.eos_token_id, tokens.pad_token_id)
    if max(ids) >= text.vocab_size or text.eos_token_id not in (None, tokens.eos_token_id):
        raise ValueError(
            f"the tokenizer's special tokens (begin, end, padding) are {ids}, but the text encoder "
            f"has {text.vocab_size} tokens and ends texts with {text.eos_token_id}: they do not fit"
        )
    side = unet.sample_size * vae.downsampling
    check_range("the side of an image, unet.sample_size times the VAE's factor,", side, 1, MAX_SIDE)


def from_json(kind: type[T], value: Any) -> T:
    """A config dataclass from its JSON form (lists become tuples).

    Raises ValueError for unknown fields, and values of another type than the field's.
    """
    as_object(kind.__name__, value)
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(value) - known):
        raise ValueError(
            f"{kind.__name__} has no field {', '.join(unknown)}; it has {sorted(known)}"
        )
    return kind(**typed(kind, value))

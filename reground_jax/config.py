"""The shapes of the networks and the noise schedule: frozen values that round-trip through JSON.

Fields mean what they say (`num_heads` is the number of heads). Each class checks its own fields,
with bounds far above any existing model; `check_together` checks them against each other.
Third-party config files are translated in `convert/configs.py`, which rejects whatever is not
supported.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from reground_jax.basics.fields import as_object, check_fields, check_range, typed
from reground_jax.basics.wording import shown
from reground_jax.clip_config import CLIPConfig as CLIPConfig
from reground_jax.clip_config import (
    CLIPTextConfig,
    CLIPVisionConfig,
    TextEncoderConfig,
    TokenizerConfig,
)
from reground_jax.settings import MAX_SIDE
from reground_jax.unet_config import (
    CHANNELS,
    LAYERS,
    MAX_LEVELS,
    UNetConfig,
)
from reground_jax.unet_config import MapConfig as MapConfig
from reground_jax.unet_config import UNetLevel as UNetLevel

T = TypeVar("T")

MAX_TRAIN_STEPS = 10_000


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
class NoiseSchedule:
    """The forward process, and the time step settings in the checkpoint's scheduler file.

    None means that the file does not set the field, so each solver uses its own default, as with
    diffusers' `from_config` (its scheduler classes have different defaults).
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
    rescale_betas_zero_snr: bool = False  # the last time step is pure noise
    original_inference_steps: int | None = None  # of LCM: the time steps that it was distilled at
    timestep_scaling: float | None = None  # of LCM

    def __post_init__(self) -> None:
        check_fields(self, num_train_steps=(1, MAX_TRAIN_STEPS))
        last = self.num_train_steps - 1
        if self.steps_offset is not None:
            check_range("NoiseSchedule.steps_offset", self.steps_offset, 0, last)
        if (steps := self.original_inference_steps) is not None:
            check_range("NoiseSchedule.original_inference_steps", steps, 1, self.num_train_steps)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"NoiseSchedule: betas go from {self.beta_start} to {self.beta_end}, but they must "
                "be above 0, below 1, and not decrease"
            )
        if self.clip_sample_range is not None and self.clip_sample_range <= 0:
            raise ValueError(
                f"NoiseSchedule.clip_sample_range is {self.clip_sample_range}: it must be above 0"
            )
        if self.timestep_scaling is not None and self.timestep_scaling <= 0:
            raise ValueError(
                f"NoiseSchedule.timestep_scaling is {self.timestep_scaling}: it must be above 0"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "NoiseSchedule: rescale_betas_zero_snr needs prediction_type 'v_prediction': at "
                "its last time step there is nothing but noise, so a model that predicts the noise "
                "(epsilon) says nothing about the image there"
            )
        if self.rescale_betas_zero_snr and self.num_train_steps < 2:
            raise ValueError("NoiseSchedule: rescale_betas_zero_snr needs 2 time steps or more")


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a whole model."""

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text_encoders: tuple[TextEncoderConfig, ...] = (TextEncoderConfig(),)
    schedule: NoiseSchedule = NoiseSchedule()
    image_encoder: CLIPVisionConfig | None = None  # for grounding by reference images

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the networks, in the order in which they are stored."""
        image = () if self.image_encoder is None else ("image_encoder", "image_project")
        return "text_encoder", "unet", "vae", *image

    @property
    def text_encoder(self) -> TextEncoderConfig:
        """The first text encoder; `check_together` rejects models with several or none."""
        return self.text_encoders[0]

    def parts(self) -> dict[str, Any]:
        """The parts by their usual names: "text_encoder" is only the network."""
        text = self.text_encoder
        image = {} if self.image_encoder is None else {"image_encoder": self.image_encoder}
        return {
            "unet": self.unet, "vae": self.vae, "text_encoder": text.network,
            "schedule": self.schedule, "tokenizer": text.tokenizer, **image,
        }  # fmt: skip

    @property
    def side(self) -> int:
        """Height and width of the images that the model was made for, in pixels."""
        return self.unet.sample_size * self.vae.downsampling

    def to_json(self) -> dict[str, Any]:
        """Parts that the model does not have are absent."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelConfig":
        """Inverse of `to_json`. Raises ValueError naming an unknown, missing or invalid part."""
        optional = {"image_encoder"} - set(value)
        check_parts(value, {field.name for field in dataclasses.fields(cls)} - optional)
        encoders = value["text_encoders"]
        if not isinstance(encoders, (list, tuple)):
            raise ValueError(f"text_encoders is {shown(encoders)}: it must be a list")
        return cls(
            unet=from_json(UNetConfig, value["unet"]),
            vae=from_json(VAEConfig, value["vae"]),
            text_encoders=tuple(_text_encoder(encoder) for encoder in encoders),
            schedule=from_json(NoiseSchedule, value["schedule"]),
            image_encoder=None if optional else from_json(CLIPVisionConfig, value["image_encoder"]),
        )

    def changes(self) -> dict[str, dict[str, Any]]:
        """The fields that differ from their defaults, by part.

        A field added later changes nothing here if its default keeps the old behavior.
        """
        plain = ModelConfig(image_encoder=CLIPVisionConfig()).parts()
        ours = {name: dataclasses.asdict(part) for name, part in self.parts().items()}
        return {
            part: {name: v for name, v in fields.items() if v != getattr(plain[part], name)}
            for part, fields in ours.items()
        }


def check_parts(value: dict[str, Any], expected: Collection[str]) -> None:
    if set(value) != set(expected):
        raise ValueError(
            f"model config has parts {sorted(value)}, expected {sorted(expected)}: "
            "the checkpoint was written by another version; convert it again"
        )


def check_together(config: ModelConfig) -> None:
    """Raises ValueError unless the parts match each other, so nothing is read out of bounds."""
    if len(config.text_encoders) != 1:
        raise ValueError(
            f"the model has {len(config.text_encoders)} text encoders, but only models with one "
            "are supported: use a Stable Diffusion 1.x or 2.x model"
        )
    unet, vae = config.unet, config.vae
    text, tokens = config.text_encoder.network, config.text_encoder.tokenizer
    latent = vae.latent_channels
    needed = 2 * latent + 1 if unet.inpainting else latent
    if (unet.in_channels, unet.out_channels) != (needed, latent):
        raise ValueError(
            f"the U-Net has {unet.in_channels} input and {unet.out_channels} output channels and "
            f"inpainting is {unet.inpainting}, but the VAE's latents have {latent}: both must be "
            f"{latent}, except {2 * latent + 1} input channels with inpainting"
        )
    if unet.text_width != text.width:
        raise ValueError(
            f"the U-Net reads text embeddings of width {unet.text_width}, but the text encoder has "
            f"width {text.width}: they must be equal"
        )
    if tokens.max_length > text.max_length:
        raise ValueError(
            f"texts are {tokens.max_length} tokens long, but the text encoder has "
            f"{text.max_length} positions: tokenizer.max_length must not exceed "
            "text_encoder.max_length"
        )
    ids = (tokens.bos_token_id, tokens.eos_token_id, tokens.pad_token_id)
    if max(ids) >= text.vocab_size or text.eos_token_id not in (None, tokens.eos_token_id):
        raise ValueError(
            f"the tokenizer's special tokens (begin, end, padding) are {ids}, but the text encoder "
            f"has {text.vocab_size} tokens and end token {text.eos_token_id}: they must match"
        )
    image = config.image_encoder
    if image is not None and image.projection_width != unet.text_width:
        raise ValueError(
            f"the image encoder writes embeddings of width {image.projection_width}, but the U-Net "
            f"reads text embeddings of width {unet.text_width}: they must be equal, as in the CLIP "
            "that both are from"
        )
    what = "the side of an image, unet.sample_size times the VAE's factor,"
    check_range(what, config.side, 1, MAX_SIDE)


def from_json(kind: type[T], value: Any) -> T:
    """A config dataclass from its JSON form (lists become tuples).

    Raises ValueError for unknown fields and for values of the wrong type.
    """
    return kind(**typed(kind, as_object(kind.__name__, value)))


def _text_encoder(value: Any) -> TextEncoderConfig:
    parts = as_object("a text encoder", value)
    check_parts(parts, ("network", "tokenizer"))
    return TextEncoderConfig(
        from_json(CLIPTextConfig, parts["network"]), from_json(TokenizerConfig, parts["tokenizer"])
    )

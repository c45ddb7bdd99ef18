"""The shape of a U-Net, and of what its fusers read; the other networks: config.py."""

from dataclasses import dataclass
from typing import Literal

from reground_jax.basics.fields import check_fields, check_range
from reground_jax.clip_config import WIDTH
from reground_jax.keypoints import JOINTS
from reground_jax.kinds import MAP_KINDS, GroundingKind
from reground_jax.settings import MAX_SIDE

MAX_LEVELS = 8  # resolutions of a U-Net or autoencoder
CHANNELS, LAYERS = (1, 2**14), (1, 32)


@dataclass(frozen=True)
class UNetLevel:
    """One resolution of a U-Net, in the down path, the middle or the up path."""

    part: Literal["down", "mid", "up"]
    index: int  # within its part, in order of execution
    depth: int  # how often the latent's sides have been halved: the index into `block_channels`
    channels: int
    inputs: tuple[int, ...]  # input channels of each resnet
    attentions: int  # number of spatial transformers, each after a resnet, from the first on
    num_heads: int
    transformer_layers: int  # transformer blocks per spatial transformer
    resamples: bool  # ends in a downsampler or an upsampler

    @property
    def name(self) -> str:
        """Such as "down_0"; also the level's scope in a profile."""
        return f"{self.part}_{self.index}"


@dataclass(frozen=True)
class MapConfig:
    """How a model reads its map; the defaults are GLIGEN's for canny and depth.

    A ConvNeXt makes grounding tokens of it, one per `stride` x `stride` pixels, and a down-sampler
    makes more input channels of the U-Net's first convolution.
    """

    side: int = 256  # the side to which the map is resized for the ConvNeXt
    depths: tuple[int, ...] = (3, 3, 9, 3)  # blocks per stage
    widths: tuple[int, ...] = (96, 192, 384, 768)
    downsampler: tuple[int, ...] = (4, 8)  # channels of its two convolutions; (): it has none
    classes: int | None = None  # of a semantic map; 0 is unlabeled

    def __post_init__(self) -> None:
        check_fields(
            self, side=(1, MAX_SIDE), depths=LAYERS, widths=CHANNELS, downsampler=CHANNELS,
            classes=(2, 256),
        )  # fmt: skip
        stages = len(self.widths)
        check_range("the number of MapConfig's stages", stages, 1, MAX_LEVELS)
        if len(self.depths) != stages or len(self.downsampler) not in (0, 2):
            raise ValueError(
                f"MapConfig has depths {self.depths}, widths {self.widths} and down-sampler "
                f"{self.downsampler}: give a depth for each width, and two channels or none"
            )
        if self.side % self.stride:
            raise ValueError(
                f"MapConfig.side is {self.side}: it must be a multiple of {self.stride}"
            )

    @property
    def stride(self) -> int:
        return 2 ** (len(self.widths) + 1)

    @property
    def tokens(self) -> int:
        """The number of grounding tokens."""
        return (self.side // self.stride) ** 2

    @property
    def channels(self) -> int:
        """What the map adds to the U-Net's input channels."""
        return self.downsampler[-1] if self.downsampler else 1


@dataclass(frozen=True)
class UNetConfig:
    """A Stable Diffusion 1.x / 2.x U-Net, with or without GLIGEN's fusers.

    One entry per resolution level, highest resolution first: `block_channels`, `layers_per_block`,
    `num_heads`, `down_attention` (the level's down path has transformers), `transformer_layers`
    (blocks in each of the level's transformers; None: one each, at all levels). `up_attention` is
    in execution order, lowest resolution first. The middle block always has one transformer, with
    as many blocks as the last level's.
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
    grounding: GroundingKind | None = "text"  # what its fusers read; None: no fusers
    inpainting: bool = False  # also reads the known part of the latent, and a mask
    transformer_layers: tuple[int, ...] | None = None
    persons: int = 8  # of the grounding kind "keypoint"
    map: MapConfig | None = None  # of the kinds in MAP_KINDS
    # Steps without fusers have a first convolution of their own, that of Stable Diffusion, which
    # knows no map.
    first_conv: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self, in_channels=CHANNELS, out_channels=CHANNELS, block_channels=CHANNELS,
            layers_per_block=LAYERS, num_heads=CHANNELS, text_width=WIDTH, norm_groups=CHANNELS,
            sample_size=(1, MAX_SIDE), transformer_layers=LAYERS, persons=(1, 2**10),
        )  # fmt: skip
        self._check_map()
        levels = len(self.block_channels)
        check_range("the number of UNetConfig's levels", levels, 1, MAX_LEVELS)
        per_level = ["layers_per_block", "num_heads", "down_attention", "up_attention"]
        per_level += ["transformer_layers"] if self.transformer_layers is not None else []
        for name in per_level:
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"UNetConfig.{name} has {len(getattr(self, name))} entries, but block_channels "
                    f"has {levels}: give one per level"
                )
        if self.transformer_layers == (1,) * levels:  # equal models get equal configs
            object.__setattr__(self, "transformer_layers", None)
        for channels, heads in zip(self.block_channels, self.num_heads, strict=True):
            if channels % heads or channels % self.norm_groups:
                raise ValueError(
                    f"UNetConfig: {channels} channels do not divide into {heads} heads and "
                    f"{self.norm_groups} norm groups; choose numbers that divide the channels"
                )

    def _check_map(self) -> None:
        mapped = self.grounding in MAP_KINDS
        if mapped != (self.map is not None):
            raise ValueError(
                f"UNetConfig has grounding {self.grounding} and map {self.map}: give both or "
                f"neither; {', '.join(MAP_KINDS)} need a map"
            )
        if self.map is not None and (self.grounding == "sem") != (self.map.classes is not None):
            raise ValueError(
                f"UNetConfig.map has {self.map.classes} classes, but its grounding is "
                f"{self.grounding}: only sem has classes"
            )
        if self.inpainting and mapped:
            raise ValueError("UNetConfig: a model that reads a map cannot be an inpainting model")
        if self.first_conv and not mapped:
            raise ValueError("UNetConfig.first_conv is only for models that read a map")

    def tokens(self, max_boxes: int) -> int:
        """The number of grounding tokens per sample; `max_boxes` counts if there are boxes."""
        if self.map is not None:
            return self.map.tokens
        per_kind = {"text_image": 2 * max_boxes, "keypoint": len(JOINTS) * self.persons}
        return per_kind.get(str(self.grounding), max_boxes)

    def levels(self) -> tuple[UNetLevel, ...]:
        """All levels in order of execution: the one place that follows the skip connections."""
        widths, deepest = self.block_channels, len(self.block_channels) - 1
        blocks = self.transformer_layers or (1,) * len(widths)
        skips = [widths[0]]  # channels of the skip connections, in order of creation
        found: list[UNetLevel] = []

        def add(part, index: int, depth: int, inputs: list[int], attentions: int, resamples: bool):
            found.append(
                UNetLevel(
                    part, index, depth, widths[depth], tuple(inputs), attentions,
                    self.num_heads[depth], blocks[depth], resamples,
                )
            )  # fmt: skip

        for depth, width in enumerate(widths):
            layers, resamples = self.layers_per_block[depth], depth < deepest
            inputs = [skips[-1]] + [width] * (layers - 1)
            add("down", depth, depth, inputs, layers * self.down_attention[depth], resamples)
            skips += [width] * (layers + resamples)
        add("mid", 0, deepest, [widths[-1]] * 2, 1, False)
        below = widths[-1]
        for index, depth in enumerate(reversed(range(len(widths)))):
            layers = self.layers_per_block[depth] + 1
            inputs = [fan_in + skips.pop() for fan_in in [below] + [widths[depth]] * (layers - 1)]
            add("up", index, depth, inputs, layers * self.up_attention[index], depth > 0)
            below = widths[depth]
        return tuple(found)

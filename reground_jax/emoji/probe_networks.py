"""The two small networks of the probes: one for crops, one for whole images.

`ObjectProbe` classifies the crop of a box: its category, and its tint or pose. `SceneProbe`
classifies a whole image's setting, time and style, and detects its objects (a one-stage detector
after FCOS, arXiv 1904.01355). `probes.py` runs them, `train_probes.py` trains them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from reground_jax.emoji.captions import UPSIDE_DOWN
from reground_jax.emoji.world import WorldConfig
from reground_jax.model import Params
from reground_jax.networks.layers import Conv, Linear, ResnetBlock

CELL = 4  # pixels per cell of the detector
TIMES = ("day", "night")
NOTHING = "nothing"  # the category of a crop without an object
EPS, GROUPS = 1e-5, 8
RARE = 4.0  # subtracted from every cell's logits, because most cells contain no object
OBJECT_WIDTHS = (32, 64, 128)
SCENE_WIDTHS = (32, 64, 128)


@dataclass(frozen=True)
class Vocabulary:
    """The classes that the probes predict, in the order of their logits."""

    size: int  # of the images, pixels
    categories: tuple[str, ...]
    attributes: tuple[str | None, ...]
    settings: tuple[str, ...]
    styles: tuple[str, ...]
    times: tuple[str, ...] = TIMES

    @classmethod
    def of_world(cls, config: WorldConfig) -> "Vocabulary":
        return cls(
            size=config.size,
            categories=(*config.categories, NOTHING),
            attributes=(None, UPSIDE_DOWN, *config.tints),
            settings=config.settings,
            styles=config.styles,
        )


class ObjectLogits(NamedTuple):
    category: Float[Array, "K N"]  # the last one is NOTHING
    attribute: Float[Array, "K A"]


class SceneLogits(NamedTuple):
    setting: Float[Array, "B P"]
    time: Float[Array, "B 2"]
    style: Float[Array, "B Y"]
    features: Float[Array, "B D"]  # features of the whole image, for the Frechet distance
    category: Float[Array, "B h w N"]  # per cell of CELL pixels, without NOTHING
    edges: Float[Array, "B h w 4"]  # xyxy of the cell's object, in fractions of the image


class Stage(nnx.Module):
    """Halves the resolution, then applies a residual block."""

    def __init__(self, fan_in: int, fan_out: int, *, rngs: nnx.Rngs):
        self.down = Conv(fan_in, fan_out, stride=2, rngs=rngs)
        self.block = ResnetBlock(fan_out, fan_out, groups=GROUPS, eps=EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        return self.block(self.down(x))


class ObjectProbe(nnx.Module):
    def __init__(self, names: Vocabulary, *, rngs: nnx.Rngs):
        widths = (3, *OBJECT_WIDTHS)
        self.stages = nnx.List(
            Stage(fan_in, fan_out, rngs=rngs)
            for fan_in, fan_out in zip(widths, widths[1:], strict=False)
        )
        self.category = Linear(widths[-1], len(names.categories), rngs=rngs)
        self.attribute = Linear(widths[-1], len(names.attributes), rngs=rngs)

    def __call__(self, crops: Float[Array, "K 32 32 3"]) -> ObjectLogits:
        """crops: values in -1..1"""
        x = crops
        for stage in self.stages:
            x = stage(x)
        pooled = jax.nn.silu(x).mean((1, 2))
        return ObjectLogits(self.category(pooled), self.attribute(pooled))


class SceneProbe(nnx.Module):
    def __init__(self, names: Vocabulary, *, rngs: nnx.Rngs):
        widths = (3, *SCENE_WIDTHS)
        self.stages = nnx.List(
            Stage(fan_in, fan_out, rngs=rngs)
            for fan_in, fan_out in zip(widths, widths[1:], strict=False)
        )
        self.deep = ResnetBlock(widths[-1], widths[-1], groups=GROUPS, eps=EPS, rngs=rngs)
        self.setting = Linear(widths[-1], len(names.settings), rngs=rngs)
        self.time = Linear(widths[-1], len(names.times), rngs=rngs)
        self.style = Linear(widths[-1], len(names.styles), rngs=rngs)
        self.lateral = Linear(widths[-1], widths[-2], rngs=rngs)
        self.merge = ResnetBlock(widths[-2], widths[-2], groups=GROUPS, eps=EPS, rngs=rngs)
        self.category = Linear(widths[-2], len(names.categories) - 1, rngs=rngs)
        self.edges = Linear(widths[-2], 4, rngs=rngs)

    def __call__(self, images: Float[Array, "B S S 3"]) -> SceneLogits:
        """images: values in -1..1"""
        x, fine = images, images
        for stage in self.stages:
            x, fine = stage(x), x  # fine: cells of CELL pixels; x: cells twice that size
        x = self.deep(x)
        pooled = jax.nn.silu(x).mean((1, 2))
        wide = self.lateral(x).repeat(2, 1).repeat(2, 2)
        cells = jax.nn.silu(self.merge(fine + wide))
        return SceneLogits(
            self.setting(pooled),
            self.time(pooled),
            self.style(pooled),
            pooled,
            self.category(cells) - RARE,
            cell_boxes(self.edges(cells)),
        )


def cell_centers(count: int) -> Float[np.ndarray, "h w 2"]:
    """x, y of every cell's center, in fractions of the image."""
    line = (np.arange(count) + 0.5) / count
    return np.stack(np.meshgrid(line, line), axis=-1).astype(np.float32)


def cell_boxes(raw: Float[Array, "B h w 4"]) -> Float[Array, "B h w 4"]:
    """xyxy boxes from log distances of cell centers to the four edges, in units of 2 cells."""
    count = raw.shape[1]
    distances = jnp.exp(jnp.clip(raw, -5, 5)) * (2 / count)
    centers = jnp.asarray(cell_centers(count))[None]
    return jnp.concatenate([centers - distances[..., :2], centers + distances[..., 2:]], axis=-1)


PROBES: dict[str, Callable[..., nnx.Module]] = {"object": ObjectProbe, "scene": SceneProbe}


def build(name: str, names: Vocabulary, seed: int = 0) -> tuple[nnx.GraphDef, Params]:
    """The graph definition and newly initialized parameters of one of PROBES."""
    graph, state = nnx.split(PROBES[name](names, rngs=nnx.Rngs(seed)))
    return graph, nnx.to_pure_dict(state)

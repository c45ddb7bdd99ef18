"""Two small networks that say what a picture of the emoji world shows, and their weights.

`ObjectProbe` looks at the crop of a box: which thing, and which tint or pose. `SceneProbe` looks at
a whole image: where, when, in which style, and what stands where (a detector of one stage, after
FCOS, arXiv 1904.01355). They were trained on renders (`train_probes.py`), never on what a model
made, and are shipped in probes.npz.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, UInt8
from PIL import Image

from reground_jax.checkpoint import flatten, unflatten
from reground_jax.devices import compiler_options
from reground_jax.emoji.captions import UPSIDE_DOWN
from reground_jax.emoji.world import WorldConfig
from reground_jax.evaluation.boxes import Detection, strongest
from reground_jax.layout import Box
from reground_jax.model import Params
from reground_jax.networks.layers import Conv, Linear, ResnetBlock

CROP = 32  # pixels: an object's box, stretched to a square
CELL = 4  # pixels per cell of the detector
TIMES = ("day", "night")
NOTHING = "nothing"  # the category of a crop without an object
EPS, GROUPS = 1e-5, 8
RARE = 4.0  # taken from every cell's logits: at first, most of them are to find nothing
OBJECT_WIDTHS = (32, 64, 128)
SCENE_WIDTHS = (32, 64, 128)
BATCH = 64  # images or crops at a time, so that another number of them does not compile


@dataclass(frozen=True)
class Vocabulary:
    """The names that the probes can say, in the order of their logits."""

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
    features: Float[Array, "B D"]  # of the whole image, for the Frechet distance
    category: Float[Array, "B h w N"]  # per cell of CELL pixels, without NOTHING
    edges: Float[Array, "B h w 4"]  # xyxy of the object at that cell, fractions of the image


class Stage(nnx.Module):
    """Half the resolution, then a residual block."""

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
        """crops in -1..1"""
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
        """images in -1..1"""
        x, fine = images, images
        for stage in self.stages:
            x, fine = stage(x), x  # fine: cells of CELL pixels; x: twice as large ones
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
    """x, y of every cell's centre, fractions of the image."""
    line = (np.arange(count) + 0.5) / count
    return np.stack(np.meshgrid(line, line), axis=-1).astype(np.float32)


def cell_boxes(raw: Float[Array, "B h w 4"]) -> Float[Array, "B h w 4"]:
    """xyxy from log distances of a cell's centre to left, top, right and bottom, in 2 cells."""
    count = raw.shape[1]
    distances = jnp.exp(jnp.clip(raw, -5, 5)) * (2 / count)
    centers = jnp.asarray(cell_centers(count))[None]
    return jnp.concatenate([centers - distances[..., :2], centers + distances[..., 2:]], axis=-1)


PROBES: dict[str, Callable[..., nnx.Module]] = {"object": ObjectProbe, "scene": SceneProbe}


def build(name: str, names: Vocabulary, seed: int = 0) -> tuple[nnx.GraphDef, Params]:
    """The graph definition and fresh parameters of one of PROBES."""
    graph, state = nnx.split(PROBES[name](names, rngs=nnx.Rngs(seed)))
    return graph, nnx.to_pure_dict(state)


class Scene(NamedTuple):
    """What the scene probe says of one image."""

    setting: str
    time: str
    style: str
    features: Float[np.ndarray, "D"]
    detections: list[Detection]


@dataclass(frozen=True)
class Probes:
    """Both probes with their weights. `Probes.load()` gives the shipped ones.

    threshold  score from which a detection counts as an object that is there: the one at which the
               most renders (neither held-out nor trained on) have their exact counts
    """

    names: Vocabulary
    params: dict[str, Params]
    threshold: float

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Probes":
        """From a file that `save` wrote; by default the one in the package."""
        shipped = files("reground_jax.evaluation").joinpath("data/probes.npz")
        source = shipped if path is None else Path(path)
        with source.open("rb") as file, np.load(file) as arrays:
            facts = json.loads(str(arrays["facts"]))
            leaves = [(name, arrays[name].astype(np.float32)) for name in arrays if "/" in name]
        size, *named = facts.pop("names").items()
        names = Vocabulary(size[1], **{field: tuple(known) for field, known in named})
        return cls(names=names, params=unflatten(leaves), **facts)

    def save(self, path: str | Path) -> None:
        """One compressed .npz file, weights in float16."""
        facts = {
            "names": dataclasses.asdict(self.names),
            "threshold": self.threshold,
        }
        leaves = {name: np.asarray(leaf, np.float16) for name, leaf in flatten(self.params)}
        np.savez_compressed(path, facts=json.dumps(facts), **leaves)  # type: ignore[arg-type]

    @property
    def checksum(self) -> str:
        """Of the weights and the threshold: whether two records are of the same probes."""
        content = hashlib.sha256(repr((self.names, self.threshold)).encode())
        for _, leaf in flatten(self.params):
            content.update(np.asarray(leaf, np.float16).tobytes())
        return content.hexdigest()

    def objects(
        self, images: UInt8[np.ndarray, "B S S 3"], owners: Sequence[int], boxes: Sequence[Box]
    ) -> list[tuple[str, str | None]]:
        """(category or NOTHING, attribute) in each box; owners[k] is the image of boxes[k]."""
        crops = [crop(images[owner], box) for owner, box in zip(owners, boxes, strict=True)]
        logits = self._run("object", np.array(crops, np.uint8).reshape(-1, CROP, CROP, 3))
        return [
            (self.names.categories[category], self.names.attributes[attribute])
            for category, attribute in zip(
                logits.category.argmax(-1), logits.attribute.argmax(-1), strict=True
            )
        ]

    def scenes(self, images: UInt8[np.ndarray, "B H W 3"]) -> list[Scene]:
        """Raises ValueError unless the images have the size that the probes were trained for."""
        if images.shape[1:3] != (self.names.size, self.names.size):
            raise ValueError(
                f"images are {images.shape[2]}x{images.shape[1]}: these probes read "
                f"{self.names.size}x{self.names.size}; train others with "
                "`python -m reground_jax.evaluation.train_probes`"
            )
        logits = self._run("scene", images)
        scores = np.exp(-np.logaddexp(0, -logits.category))  # sigmoid
        return [
            Scene(
                self.names.settings[logits.setting[i].argmax()],
                self.names.times[logits.time[i].argmax()],
                self.names.styles[logits.style[i].argmax()],
                logits.features[i],
                strongest(scores[i], logits.edges[i], self.names.categories),
            )
            for i in range(len(images))
        ]

    def _run(self, name: str, pixels: UInt8[np.ndarray, "B H W 3"]) -> Any:
        """Logits as numpy arrays, computed in batches of BATCH."""
        program, count = _compiled(name, self.names), len(pixels)
        padded = np.zeros((max(1, -(-count // BATCH)) * BATCH, *pixels.shape[1:]), np.uint8)
        padded[:count] = pixels
        parts = [
            program(self.params[name], padded[start : start + BATCH])
            for start in range(0, len(padded), BATCH)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


@functools.cache
def _compiled(name: str, names: Vocabulary) -> Callable[..., Any]:
    graph, _ = nnx.split(nnx.eval_shape(lambda: PROBES[name](names, rngs=nnx.Rngs(0))))

    def run(params: Params, pixels: Array) -> Any:
        return nnx.merge(graph, params)(unit(pixels))

    return jax.jit(run, compiler_options=compiler_options(jax.devices()))


def unit(pixels: UInt8[ArrayLike, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """0..255 -> -1..1"""
    return jnp.asarray(pixels, jnp.float32) / 127.5 - 1


def crop(image: UInt8[np.ndarray, "S S 3"], box: Box) -> UInt8[np.ndarray, "32 32 3"]:
    """The pixels of a box with an eighth of its sides around it, as far as the image goes."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    dx, dy = max((x1 - x0) / 8, 1 / width), max((y1 - y0) / 8, 1 / height)
    edges = (max(x0 - dx, 0), max(y0 - dy, 0), min(x1 + dx, 1), min(y1 + dy, 1))
    pixels = tuple(v * side for v, side in zip(edges, (width, height) * 2, strict=True))
    resized = Image.fromarray(image).resize((CROP, CROP), Image.Resampling.BILINEAR, box=pixels)
    return np.asarray(resized)

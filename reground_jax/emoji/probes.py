"""Two small networks that recognize what images of the emoji world show.

They were trained on renders only (`train_probes.py`), never on generated images, and are shipped in
data/probes.npz.
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
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image

from reground_jax.basics.boxes import iou
from reground_jax.devices import compiler_options
from reground_jax.emoji.probe_networks import PROBES, Vocabulary
from reground_jax.evaluation.scorers.detections import Detection
from reground_jax.images import from_uint8
from reground_jax.layout_fields import Box
from reground_jax.model import Params
from reground_jax.storage.checkpoint import flatten, unflatten

CROP = 32  # side of the square that an object's box is resized to, pixels
BATCH = 64  # fixed batch of images or crops, so that other counts do not recompile
FAINT = 0.05  # minimum score of a detection: average precision needs weak ones, too
SAME_OBJECT = 0.5  # IoU from which the weaker of two detections is dropped as a duplicate


class Scene(NamedTuple):
    """The scene probe's predictions for one image."""

    setting: str
    time: str
    style: str
    features: Float[np.ndarray, "D"]
    detections: list[Detection]


@dataclass(frozen=True)
class Probes:
    """Both probes with their weights. `Probes.load()` gives the shipped ones.

    threshold  score from which a detection counts as a present object; chosen so that the most
               renders (neither held out nor trained on) get exact counts
    """

    names: Vocabulary
    params: dict[str, Params]
    threshold: float

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Probes":
        """Load a file that `save` wrote; by default the one in the package."""
        shipped = files("reground_jax.emoji").joinpath("data/probes.npz")
        source = shipped if path is None else Path(path)
        with source.open("rb") as file, np.load(file) as arrays:
            facts = json.loads(str(arrays["facts"]))
            leaves = [(name, arrays[name].astype(np.float32)) for name in arrays if "/" in name]
        size, *named = facts.pop("names").items()
        names = Vocabulary(size[1], **{field: tuple(known) for field, known in named})
        return cls(names=names, params=unflatten(leaves), **facts)

    def save(self, path: str | Path) -> None:
        """Write one compressed .npz file, with weights in float16."""
        facts = {
            "names": dataclasses.asdict(self.names),
            "threshold": self.threshold,
        }
        leaves = {name: np.asarray(leaf, np.float16) for name, leaf in flatten(self.params)}
        np.savez_compressed(path, facts=json.dumps(facts), **leaves)  # type: ignore[arg-type]

    @property
    def checksum(self) -> str:
        """Covers names, weights and threshold; tells whether two records used the same probes."""
        content = hashlib.sha256(repr((self.names, self.threshold)).encode())
        for _, leaf in flatten(self.params):
            content.update(np.asarray(leaf, np.float16).tobytes())
        return content.hexdigest()

    def objects(
        self, images: UInt8[np.ndarray, "B S S 3"], owners: Sequence[int], boxes: Sequence[Box]
    ) -> list[tuple[str, str | None]]:
        """(category or NOTHING, attribute) of each box; boxes[k] is in images[owners[k]]."""
        crops = [crop(images[owner], box) for owner, box in zip(owners, boxes, strict=True)]
        logits = self._run("object", np.array(crops, np.uint8).reshape(-1, CROP, CROP, 3))
        return [
            (self.names.categories[category], self.names.attributes[attribute])
            for category, attribute in zip(
                logits.category.argmax(-1), logits.attribute.argmax(-1), strict=True
            )
        ]

    def scenes(self, images: UInt8[np.ndarray, "B H W 3"]) -> list[Scene]:
        """Scenes of images. Raises ValueError unless they have the size that the probes take."""
        if images.shape[1:3] != (self.names.size, self.names.size):
            raise ValueError(
                f"images are {images.shape[2]}x{images.shape[1]}: these probes take "
                f"{self.names.size}x{self.names.size}; train others with "
                "`python -m reground_jax.emoji.train_probes`"
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
        return nnx.merge(graph, params)(from_uint8(pixels))

    return jax.jit(run, compiler_options=compiler_options(jax.devices()))


def crop(image: UInt8[np.ndarray, "S S 3"], box: Box) -> UInt8[np.ndarray, "32 32 3"]:
    """The pixels of a box plus a margin of an eighth of its sides, clipped to the image."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    dx, dy = max((x1 - x0) / 8, 1 / width), max((y1 - y0) / 8, 1 / height)
    edges = (max(x0 - dx, 0), max(y0 - dy, 0), min(x1 + dx, 1), min(y1 + dy, 1))
    pixels = tuple(v * side for v, side in zip(edges, (width, height) * 2, strict=True))
    resized = Image.fromarray(image).resize((CROP, CROP), Image.Resampling.BILINEAR, box=pixels)
    return np.asarray(resized)


def strongest(
    scores: Float[np.ndarray, "h w N"], edges: Float[np.ndarray, "h w 4"], names: Sequence[str]
) -> list[Detection]:
    """Non-maximum suppression over every cell's scores and box; strongest detections first.

    An object has one category: of two overlapping detections the weaker is dropped, whatever its
    category.
    """
    categories, best = scores.argmax(-1).ravel(), scores.max(-1).ravel()
    boxes = np.clip(edges.reshape(-1, 4), 0, 1)
    order = [i for i in np.argsort(-best, kind="stable") if best[i] >= FAINT]
    kept: list[int] = []
    for i in order:
        if not kept or iou(boxes[i], boxes[kept]).max() < SAME_OBJECT:
            kept.append(int(i))
    return [Detection(names[int(categories[i])], float(best[i]), _box(boxes[i])) for i in kept]


def _box(values: np.ndarray) -> Box:
    x0, y0, x1, y1 = (round(float(value), 4) for value in values)
    return x0, y0, x1, y1

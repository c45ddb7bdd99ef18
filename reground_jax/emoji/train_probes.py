"""Train the probes on renders of the emoji world:

    python -m reground_jax.emoji.train_probes --artwork artwork.npz --out DIR

writes DIR/probes.npz, and checkpoints next to it: an interrupted run resumes when run again. Needs
optax (`pip install "reground-jax[train]"`). `heldout.py` measures the probes' accuracy.
"""

import argparse
import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, UInt8

from reground_jax.basics.boxes import area
from reground_jax.emoji.artwork import load_artwork
from reground_jax.emoji.placing import background_box
from reground_jax.emoji.probe_networks import (
    CELL,
    NOTHING,
    ObjectLogits,
    SceneLogits,
    Vocabulary,
    build,
    cell_centers,
)
from reground_jax.emoji.probes import Probes, crop
from reground_jax.emoji.world import Example, World, WorldConfig
from reground_jax.images import from_uint8
from reground_jax.layout_fields import Box
from reground_jax.model import Params
from reground_jax.storage.checkpoint import flatten, unflatten
from reground_jax.training.recipe import Recipe
from reground_jax.training.trainer import Trainer

STREAM = 1_000_000  # example stream, disjoint from those that models are trained on
JITTER = 0.08  # share of a box's sides: generated objects do not fill their boxes exactly
CENTER = 1.5  # radius around an object's center within which cells detect it, in cells


class ObjectBatch(NamedTuple):
    crops: UInt8[np.ndarray, "K 32 32 3"]
    category: Int[np.ndarray, "K"]
    attribute: Int[np.ndarray, "K"]  # -1 if there is no object


class SceneBatch(NamedTuple):
    images: UInt8[np.ndarray, "B S S 3"]
    setting: Int[np.ndarray, "B"]
    time: Int[np.ndarray, "B"]
    style: Int[np.ndarray, "B"]
    category: Int[np.ndarray, "B h w"]  # -1 if there is no object
    edges: Float[np.ndarray, "B h w 4"]


def object_loss(
    graph: nnx.GraphDef, params: Params, batch: ObjectBatch
) -> tuple[Array, dict[str, Array]]:
    logits: ObjectLogits = nnx.merge(graph, params["object"])(from_uint8(batch.crops))
    seen = batch.attribute >= 0
    category = cross_entropy(logits.category, batch.category).mean()
    attribute = cross_entropy(logits.attribute, jnp.maximum(batch.attribute, 0))
    attribute = (attribute * seen).sum() / jnp.maximum(seen.sum(), 1)
    right = (logits.category.argmax(-1) == batch.category).mean()
    return category + attribute, {"category": category, "attribute": attribute, "right": right}


def scene_loss(
    graph: nnx.GraphDef, params: Params, batch: SceneBatch
) -> tuple[Array, dict[str, Array]]:
    logits: SceneLogits = nnx.merge(graph, params["scene"])(from_uint8(batch.images))
    setting = cross_entropy(logits.setting, batch.setting).mean()
    time = cross_entropy(logits.time, batch.time).mean()
    style = cross_entropy(logits.style, batch.style).mean()
    there = jnp.asarray(batch.category >= 0)
    count = jnp.maximum(there.sum(), 1)
    target = jax.nn.one_hot(batch.category, logits.category.shape[-1])  # -1 gives zeros
    found = focal(logits.category, target).sum() / count
    placed = ((1 - overlaps(logits.edges, batch.edges)) * there).sum() / count
    scene = setting + time + style
    return 0.5 * scene + found + placed, {"scene": scene, "found": found, "placed": placed}


def cross_entropy(logits: Float[Array, "B N"], target: Int[ArrayLike, "B"]) -> Float[Array, "B"]:
    rows = jnp.asarray(target)[:, None]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), rows, axis=1)[:, 0]


def focal(logits: Float[Array, "*S N"], target: Float[Array, "*S N"]) -> Float[Array, "*S N"]:
    """Focal loss: binary cross-entropy that down-weights easy cases (arXiv 1708.02002)."""
    p = jax.nn.sigmoid(logits)
    wrong = target * (1 - p) + (1 - target) * p
    weight = target * 0.25 + (1 - target) * 0.75
    entropy = jnp.logaddexp(0.0, jnp.where(target > 0, -logits, logits))
    return 4 * weight * wrong**2 * entropy


def overlaps(a: Float[Array, "*S 4"], b: Float[ArrayLike, "*S 4"]) -> Float[Array, "*S"]:
    """IoU of boxes that share a point."""
    b = jnp.asarray(b)
    shared = (jnp.minimum(a, b)[..., 2:] - jnp.maximum(a, b)[..., :2]).prod(-1)
    area = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return shared / (area - shared)


def object_batch(
    world: World, names: Vocabulary, size: int, index: int, stream: int = STREAM
) -> ObjectBatch:
    """`size` crops of objects, and of one background box per image if there is room."""
    rng = np.random.default_rng((stream, index))
    crops: list[np.ndarray] = []
    labels: list[tuple[int, int]] = []
    for example in world.batch(index, size // 2, stream):
        image = weathered(example.image, rng)
        objects = example.facts["objects"]
        for thing in objects:
            crops.append(crop(image, jittered(thing["box"], rng)))
            attribute = names.attributes.index(thing["attribute"])
            labels.append((names.categories.index(thing["category"]), attribute))
        empty = background_box([thing["box"] for thing in objects], rng)
        if empty is not None:
            crops.append(crop(image, empty))
            labels.append((names.categories.index(NOTHING), -1))
        if len(crops) >= size:
            break
    rows = np.arange(size) % len(crops)
    category, attribute = np.array(labels, np.int32)[rows].T
    return ObjectBatch(np.stack(crops)[rows], category, attribute)


def scene_batch(
    world: World, names: Vocabulary, size: int, index: int, stream: int = STREAM + 1
) -> SceneBatch:
    rng = np.random.default_rng((stream, index))
    examples = world.batch(index, size, stream)
    count = world.config.size // CELL
    targets = [cell_targets(example, names, count) for example in examples]

    def named(field: str, known: Sequence[str]) -> np.ndarray:
        return np.array([known.index(e.facts[field]) for e in examples], np.int32)

    return SceneBatch(
        images=np.stack([weathered(example.image, rng) for example in examples]),
        setting=named("setting", names.settings),
        time=named("time", names.times),
        style=named("style", names.styles),
        category=np.stack([category for category, _ in targets]),
        edges=np.stack([edges for _, edges in targets]),
    )


def cell_targets(
    example: Example, names: Vocabulary, count: int
) -> tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "h w 4"]]:
    """Each cell's target: the object whose center is near it, preferring small objects."""
    category = np.full((count, count), -1, np.int32)
    edges = np.tile(np.array([0, 0, 1, 1], np.float32), (count, count, 1))
    x, y = cell_centers(count).transpose(2, 0, 1)
    objects = sorted(example.facts["objects"], key=lambda thing: -area(thing["box"]))
    for thing in objects:
        x0, y0, x1, y1 = thing["box"]
        reach = CENTER / count
        near = (np.abs(x - (x0 + x1) / 2) < reach) & (np.abs(y - (y0 + y1) / 2) < reach)
        on = near & (x > x0) & (x < x1) & (y > y0) & (y < y1)
        category[on] = names.categories.index(thing["category"])
        edges[on] = thing["box"]
    return category, edges


def weathered(
    image: UInt8[np.ndarray, "S S 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"]:
    """Half of the time, blur, add noise and change contrast, to resemble generated images."""
    if rng.random() < 0.5:
        return image
    values = image.astype(np.float32)
    around = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
    blurred = (around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]) / 4
    values += rng.uniform(0, 0.7) * (blurred - values)
    values = 128 + rng.uniform(0.85, 1.1) * (values - 128) + rng.uniform(-12, 12)
    values += rng.uniform(0, 8) * rng.standard_normal(values.shape, np.float32)
    return np.clip(values, 0, 255).astype(np.uint8)


def jittered(box: Box, rng: np.random.Generator) -> Box:
    x0, y0, x1, y1 = box
    dx0, dy0, dx1, dy1 = JITTER * np.clip(rng.standard_normal(4), -2, 2)
    width, height = x1 - x0, y1 - y0
    return (
        max(x0 + dx0 * width, 0.0),
        max(y0 + dy0 * height, 0.0),
        min(x1 + dx1 * width, 1.0),
        min(y1 + dy1 * height, 1.0),
    )


LOSSES = {"object": object_loss, "scene": scene_loss}
BATCHES = {"object": object_batch, "scene": scene_batch}
RECIPES = {
    "object": Recipe(
        num_steps=640, batch_size=128, optimizer="muon", learning_rate=4e-3, warmup_steps=30,
        average_decay=0.99, weight_decay=0.01, save_every=160,
    ),
    "scene": Recipe(
        num_steps=520, batch_size=48, optimizer="muon", learning_rate=4e-3, warmup_steps=30,
        average_decay=0.99, weight_decay=0.01, save_every=130,
    ),
}  # fmt: skip


def train(name: str, world: World, names: Vocabulary, recipe: Recipe, out: Path) -> Params:
    """The trained parameters of one probe, averaged over recent steps; resumes from `out`."""
    graph, params = build(name, names)
    trainer = Trainer(
        loss=functools.partial(LOSSES[name], graph),
        recipe=recipe,
        trained=dict(flatten({name: params})),
        frozen={},
        make_batch=lambda index: BATCHES[name](world, names, recipe.batch_size, index),
        out=out / name,
        devices=tuple(jax.devices()[:1]),
    )
    trainer.run()
    leaves = {leaf: np.asarray(value) for leaf, value in trainer.state.average.items()}
    return unflatten(leaves.items())[name]


def best_threshold(probes: Probes, world: World, count: int = 1000) -> float:
    """The score at which the most renders get exact counts, in steps of 0.02."""
    examples = world.batch(0, count, STREAM + 2)
    scenes = probes.scenes(np.stack([example.image for example in examples]))
    truth = [Counter(thing["category"] for thing in e.facts["objects"]) for e in examples]

    def exact(threshold: float) -> int:
        found = [Counter(d.category for d in s.detections if d.score >= threshold) for s in scenes]
        return sum(mine == true for mine, true in zip(found, truth, strict=True))

    return max((step / 50 for step in range(5, 45)), key=exact)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artwork", type=Path, required=True, help="artwork.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for probes.npz")
    given = parser.parse_args(arguments)
    artwork = load_artwork(given.artwork)
    world = World(WorldConfig(), artwork)
    names = Vocabulary.of_world(world.config)
    # Generated objects may be anywhere and of any size.
    anywhere = World(dataclasses.replace(world.config, grid=1), artwork)
    params = {
        name: train(name, anywhere, names, recipe, given.out) for name, recipe in RECIPES.items()
    }
    probes = Probes(names, params, threshold=0.5)
    probes = dataclasses.replace(probes, threshold=best_threshold(probes, world))
    probes.save(given.out / "probes.npz")


if __name__ == "__main__":
    main()

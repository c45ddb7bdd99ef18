"""Writes the package's evaluation data, so that evaluation needs no artwork:

    python -m reground_jax.emoji.heldout --artwork artwork.npz --model emoji --out DIR

writes DIR/heldout.json.gz (1,000 held-out layouts and their facts), DIR/reference.json.gz (probe
results on their renders, before and after the model's autoencoder) and DIR/reference.npz (mean and
covariance of the features of 2,000 other held-out renders). It reads DIR/probes.npz.
"""

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from reground_jax.basics.boxes import area
from reground_jax.emoji.artwork import load_artwork
from reground_jax.emoji.cases import HELDOUT, grounded, pack
from reground_jax.emoji.placing import background_box
from reground_jax.emoji.probe_networks import NOTHING
from reground_jax.emoji.probes import Probes
from reground_jax.emoji.scorer import SMALLEST, probe_score
from reground_jax.emoji.world import Example, World, WorldConfig
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.statistics import Gaussian
from reground_jax.images import from_uint8, to_uint8
from reground_jax.model import network
from reground_jax.pipeline import Pipeline

CASES = 1000
OTHERS = 2000  # renders for the Frechet distance's reference features


def case_of(example: Example) -> Case:
    """The case of a render: its layout, and the facts that an image can be scored on."""
    fields = ("category", "attribute", "box", "boxed")
    objects = [{name: thing[name] for name in fields} for thing in example.facts["objects"]]
    return Case(grounded(example.layout, objects), example.facts | {"objects": objects})


def renders(artwork: str | Path, count: int) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
    """The renders of the first held-out layouts. artwork: the file of `emoji.artwork`.

    Raises ValueError that says how to make the artwork if it is missing.
    """
    world = World(WorldConfig(), load_artwork(artwork))
    return (example.image for example in world.heldout(count))


def decoded(pipe: Pipeline, images: UInt8[np.ndarray, "B S S 3"]) -> UInt8[np.ndarray, "B S S 3"]:
    """The images passed through the model's autoencoder, 50 at a time."""
    vae = nnx.merge(network(pipe.config, "vae")[0], pipe.params["vae"])

    @jax.jit
    def encode(pixels: jax.Array) -> jax.Array:
        return vae.encode(from_uint8(pixels), attend=pipe.programs.hardware.attend)

    parts = [
        pipe.decode(encode(jnp.asarray(images[start : start + 50])))
        for start in range(0, len(images), 50)
    ]
    return to_uint8(np.concatenate([np.asarray(part) for part in parts]), value_range="0..1")


def accuracy(
    probes: Probes, images: UInt8[np.ndarray, "B S S 3"], cases: Sequence[Case]
) -> dict[str, float]:
    """Accuracy of the probes, on objects of at least SMALLEST pixels and on background boxes."""
    owners, boxes, truth = [], [], []
    rng = np.random.default_rng(0)
    for index, case in enumerate(cases):
        objects = case.facts["objects"]
        empty = background_box([thing["box"] for thing in objects], rng)
        places = [(t["category"], t["attribute"], t["box"]) for t in objects]
        places += [] if empty is None else [(NOTHING, None, empty)]
        for category, attribute, box in places:
            if images.shape[1] * area(box) ** 0.5 >= SMALLEST:
                owners.append(index)
                boxes.append(box)
                truth.append((category, attribute))
    said = probes.objects(images, owners, boxes)
    pairs = list(zip(said, truth, strict=True))
    objects = [(mine, true) for mine, true in pairs if true[0] != NOTHING]
    scenes = probes.scenes(images)

    def right(answers: Iterable[tuple[Any, Any]]) -> float:
        return float(np.mean([mine == true for mine, true in answers]))

    return {
        "object": right((mine[0], true[0]) for mine, true in objects),
        "attribute": right((mine[1], true[1]) for mine, true in objects),
        "background": right((mine[0], true[0]) for mine, true in pairs if true[0] == NOTHING),
        **{
            name: right(
                (getattr(scene, name), case.facts[name])
                for scene, case in zip(scenes, cases, strict=True)
            )
            for name in ("setting", "time", "style")
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artwork", type=Path, required=True, help="artwork.npz")
    parser.add_argument("--model", required=True, help="model whose autoencoder is used")
    parser.add_argument("--out", type=Path, required=True, help="folder that has probes.npz")
    given = parser.parse_args(arguments)
    probes = Probes.load(given.out / "probes.npz")
    world = World(WorldConfig(), load_artwork(given.artwork))
    examples = world.heldout(CASES + OTHERS)
    cases = [case_of(example) for example in examples[:CASES]]
    images = np.stack([example.image for example in examples])
    own, others = images[:CASES], images[CASES:]
    versions = {"renders": own, "decoded": decoded(Pipeline.load(given.model), own)}
    score = probe_score(probes)
    facts: dict[str, Any] = {name: score(pixels, cases) for name, pixels in versions.items()}
    facts["accuracy"] = {name: accuracy(probes, p, cases) for name, p in versions.items()}
    features = Gaussian.of(np.stack([scene.features for scene in probes.scenes(others)]))

    (given.out / Path(HELDOUT).name).write_bytes(pack(cases))
    text = json.dumps(facts, separators=(",", ":"))
    (given.out / "reference.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    np.savez(
        given.out / "reference.npz",
        mean=features.mean.astype(np.float32),
        covariance=features.covariance.astype(np.float32),
    )
    for name, values in facts["accuracy"].items():
        print(name, ", ".join(f"{key} {100 * value:.1f} %" for key, value in values.items()))


if __name__ == "__main__":
    main()

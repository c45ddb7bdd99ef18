"""FID and KID: how far images are from photographs, as sets of InceptionV3's features."""

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from reground_jax.convert.scoring import load_inception
from reground_jax.devices import Device
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorer import Distance, Scorer
from reground_jax.evaluation.scorers.batches import BATCH_SIZE, about, facts, in_batches, version
from reground_jax.evaluation.statistics import Gaussian, Record, frechet_distance, kernel_distance
from reground_jax.networks.inception import FEATURES, Inception

RULES = 1  # incremented whenever records change
WHAT = (
    "Distances of InceptionV3's features to those of photographs; images are resized to 299 pixels "
    "as by TensorFlow 1. FID depends on the number of images: compare it at equal numbers only"
)

Features = Float[np.ndarray, "N D"]
Measure = Callable[[tuple[str, ...], Features], float]  # of the ids and the features of images


def inception_scorer(
    source: str | Path,
    *,
    name: str = "inception",
    devices: Sequence[Device] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Scorer:
    """The features of FID's InceptionV3, and "fid" and "kid", the distances to photographs.

    source: see `load_inception`. name: of the scorer. devices: by default, all of this process.
    batch_size: images per device. Raises ValueError for a source that cannot be used.

    Records have "features", a float16 array [2048]. Images are resized on the device as by the
    original code, TensorFlow 1's bilinear without antialiasing (torch-fidelity's default;
    pytorch-fid's differs by half a pixel). Compression alone moves FID: score lossless images.
    """

    def run(network: Inception, images: UInt8[Array, "B H W 3"]) -> Float32[Array, "B 2048"]:
        return network(images)

    network = load_inception(source)
    over = in_batches(network, run, inputs=1, devices=devices, batch_size=batch_size)

    def score(images: UInt8[np.ndarray, "B S S 3"], cases: Sequence[Case]) -> list[Record]:
        features = over((image,) for image in images).astype(np.float16)
        return [
            {"id": case.layout.id, "features": row}
            for case, row in zip(cases, features, strict=True)
        ]

    return Scorer(
        name=name,
        version=version(RULES, network),
        score=score,
        metrics=(),
        to_photographs=photograph_distances,
        facts=facts(source, network),
        about=about(name, WHAT, source, network),
    )


def photograph_distances(records: Sequence[Record]) -> tuple[Distance, ...]:
    """The distances "fid" and "kid" to photographs.

    records: what the scorer returned for photographs, one for the id of each layout. A set of
    images is compared with the photographs of its own ids, as many as there are images, because
    FID is biased by their number; several images of a layout are compared one after another, and
    the distances averaged. A set without photographs has no distance. The distances raise
    ValueError if only some images have a photograph, or layouts have unlike numbers of images, and
    warn if there are too few images.
    """
    photographs = {record["id"]: record["features"] for record in records}
    if len(photographs) < len(records):
        raise ValueError("two photographs have the same id: give one for each layout")

    def features_of(ids: Sequence[str]) -> Features:
        return np.array([photographs[one] for one in ids])

    @functools.lru_cache(maxsize=4)
    def gaussian_of(ids: tuple[str, ...]) -> Gaussian:
        return Gaussian.of(features_of(ids))

    def fid(ids: tuple[str, ...], features: Features) -> float:
        if len(ids) <= FEATURES:
            warnings.warn(
                f"FID of {len(ids)} images means little: its covariance needs more than {FEATURES}",
                stacklevel=2,
            )
        return frechet_distance(Gaussian.of(features), gaussian_of(ids))

    def kid(ids: tuple[str, ...], features: Features) -> float:
        return 1000 * kernel_distance(features, features_of(ids))

    def distance(name: str, meaning: str, measure: Measure) -> Distance:
        return Distance(name, meaning, functools.partial(_distance, measure, photographs.keys()))

    return (
        distance(
            "fid",
            "Frechet distance of Inception's features to those of the layouts' photographs "
            "(lower is better; biased by the number of images)",
            fid,
        ),
        distance("kid", "1000 times the kernel distance of the same (unbiased)", kid),
    )


def _distance(measure: Measure, known: Collection[str], records: Sequence[Record]) -> float | None:
    """The mean over rounds of images, each with one image per layout."""
    rounds: list[dict[str, np.ndarray]] = []
    seen: Counter[str] = Counter()
    for record in records:
        if seen[record["id"]] == len(rounds):
            rounds.append({})
        rounds[seen[record["id"]]][record["id"]] = record["features"]
        seen[record["id"]] += 1
    lost = [one for one in seen if one not in known]
    if len(seen) < 2 or len(lost) == len(seen):
        return None
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(seen)} layouts have no photograph, such as {lost[0]!r}, but FID "
            "compares equal numbers: leave them out, or give their photographs"
        )
    if len(rounds[-1]) < len(seen):
        raise ValueError(
            f"some layouts have {len(rounds)} images and others fewer, but FID compares equal "
            "numbers: give each layout as many"
        )
    return float(np.mean([measure(tuple(one), np.array(list(one.values()))) for one in rounds]))

"""A study of painted squares, a stand-in for models that takes no time."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from reground_jax.batch.run import Run
from reground_jax.emoji import data as emoji
from reground_jax.emoji.scorer import METRICS, TRADE_OFF
from reground_jax.evaluation.data import Data
from reground_jax.evaluation.scorer import Metric, Scorer
from reground_jax.evaluation.studies.conditions import wiring_series
from reground_jax.evaluation.studies.study import Model, Study
from reground_jax.settings import WIRINGS, Settings

SETTINGS = Settings(num_steps=20, guidance_scale=4.0, solver="dpmpp_2m")
GAMMAS = [0.0, 0.3, 1.0]
UNIT = 10  # layouts


@cache
def emoji_data(count: int, **options: Any) -> Data:
    """The built-in world's, as if it had 40 layouts."""
    data = emoji.emoji_data(count, **options)
    most = {"heldout": 40, "dropped": 20}
    sets = (dataclasses.replace(s, cases=s.cases[: most[s.name]]) for s in data.sets)
    return dataclasses.replace(data, sets=tuple(sets))


def red_of(settings: Settings) -> int:
    """A number for the method, 0 to 255."""
    if settings.wiring != "coupled":
        return WIRINGS.index(settings.wiring)
    coupling = settings.coupling
    return 100 + round(100 * coupling) if isinstance(coupling, float) else 250


class Painted(np.ndarray):
    """Images that are ready."""

    def block_until_ready(self) -> None:
        pass


class Painter:
    """Replaces a model on its devices: an image's color encodes how it was requested."""

    rows = 5

    def __init__(self):
        self.asked: list[tuple[str, list[float], list[int]]] = []

    def encode(self, layouts):
        return list(layouts)

    def enqueue(self, encoded, rows, variants, seeds):
        real = [layout.prompt != "" for layout in encoded[rows]]
        gammas = [settings.gamma for settings in variants]
        self.asked.append((variants[0].wiring, gammas, seeds[real].tolist()))
        return [self.draw(encoded[rows], settings, seeds).view(Painted) for settings in variants]

    def draw(self, layouts, settings, seeds):
        red = red_of(settings) / 255
        colors = [(red, settings.gamma * 100 / 255, int(seed) % 256 / 255) for seed in seeds]
        return np.stack([np.full((8, 8, 3), color, np.float32) for color in colors])

    def images(self) -> int:
        """How many images were made."""
        return sum(len(gammas) * len(seeds) for _, gammas, seeds in self.asked)


def pixels(images, cases):
    """Records that identify their images."""
    return [
        {"id": case.layout.id, "pixel": image[0, 0].tolist()}
        for image, case in zip(images, cases, strict=True)
    ]


def scorer(name: str = "probes", score=pixels, version: str = "1", **fields: Any) -> Scorer:
    """The emoji world's metrics, on the records that `score` makes."""
    return Scorer(name, version, score, **({"metrics": METRICS} | fields))


def brightness(name: str = "brightness") -> Metric:
    """A metric on the records of `pixels`."""

    def statistic(records, weights):
        return weights @ np.array([sum(record["pixel"]) for record in records]) / len(records)

    return Metric(name, "how bright an image is", statistic)


def model(painter: Painter, name: str = "painter", checksum: str = "0" * 64) -> Model:
    def sampler(run: Run) -> Painter:
        return painter

    return Model(name, checksum, sampler, 8)


def study(
    out: Path | str, painter: Painter, count: int = 8, more: Sequence[str] = (), **changes: Any
) -> Study:
    data = changes.pop("data", None) or emoji_data(count)
    names = ["gligen", "trained-parallel"]
    fields = dict(
        out=str(out),
        models={name: model(painter, name) for name in names},
        data=data,
        series=wiring_series(names, data.sets, changes.pop("gammas", GAMMAS), more),
        settings=SETTINGS,
        identity={},
        scorers=[scorer()],
        trade_off=TRADE_OFF,
        batch_size=Painter.rows,
        unit_lines=UNIT,
    )
    return Study(**fields | changes)


def ran(made: Study) -> Study:
    """The study, with all images and scores."""
    made.generate()
    made.score()
    return made


def all_records(made: Study) -> dict:
    return {condition: made.records(condition) for condition in made.conditions()}

"""A study of painted squares, a stand-in for models that takes no time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reground_jax.emoji.cases import TITLES, heldout_cases
from reground_jax.emoji.scorer import METRICS, TRADE_OFF
from reground_jax.evaluation.cases import with_half_the_boxes
from reground_jax.evaluation.conditions import wiring_series
from reground_jax.evaluation.scorer import Metric, Scorer
from reground_jax.evaluation.study import Study
from reground_jax.settings import WIRINGS, Settings

SETTINGS = Settings(num_steps=20, guidance_scale=4.0, solver="dpmpp_2m")


def red_of(settings: Settings) -> int:
    """A number for the method, 0 to 255."""
    if settings.wiring != "coupled":
        return WIRINGS.index(settings.wiring)
    coupling = settings.coupling
    return 100 + round(100 * coupling) if isinstance(coupling, float) else 250


class Painter:
    """Replaces a pipeline: an image's color encodes how it was requested."""

    def __init__(self):
        self.asked: list[tuple[str, list[float], list[int]]] = []

    def sweep(self, layouts, settings, *, gammas, seeds, **keywords):
        assert settings.num_steps == 20 and keywords["output"] == "numpy"
        assert len(layouts) == len(seeds)
        self.asked.append((settings.wiring, list(gammas), list(seeds)))
        red = red_of(settings) / 255
        return {
            gamma: np.stack(
                [np.full((8, 8, 3), (red, gamma * 100 / 255, seed % 256 / 255)) for seed in seeds]
            ).astype(np.float32)
            for gamma in gammas
        }


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


def study(
    out: Path, painter: Painter, count: int = 8, more: Sequence[str] = (), **changes: Any
) -> Study:
    heldout = heldout_cases(count)
    cases = {"heldout": heldout, "dropped": with_half_the_boxes(heldout)}
    fields = dict(
        out=out,
        models={"gligen": lambda: painter, "trained-parallel": lambda: painter},
        cases=cases,
        titles=TITLES,
        series=wiring_series(["gligen", "trained-parallel"], list(cases), [0.0, 0.3, 1.0], more),
        settings=SETTINGS,
        identity={"rich_phrases": False},
        scorers=[scorer()],
        trade_off=TRADE_OFF,
    )
    return Study(**fields | changes)

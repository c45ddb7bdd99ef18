"""`reground-jax evaluate` with a stand-in for the model; the fixture `rendered` puts it there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reground_jax.cli import main
from reground_jax.evaluation.scorer import Scorer
from reground_jax.evaluation.scorers.detections import RULES, detection_scorer
from tests.renders import renders
from tests.studies import Painter


def evaluated(model: Path, out: Path, *options: str) -> int:
    common = ["--batch-size", "16", "--no-cache", "--out", str(out)]
    return main(["evaluate", "--model", str(model), *common, *options])


class Renderer(Painter):
    """Draws the renders of the first layouts whatever the wiring; without boxes, upside down."""

    rows = 16

    def draw(self, layouts, settings, seeds):
        images, cases = renders()
        rows = {case.layout.prompt: row for row, case in enumerate(cases)}
        drawn = images[[rows.get(layout.prompt, 0) for layout in layouts]] / np.float32(255)
        right = drawn if settings.gamma >= 0.5 else drawn[:, ::-1]
        return right.astype(np.float32)


def oracle(name: str, find: Callable[..., Any]) -> Scorer:
    return detection_scorer(find, name=name, version="1", rules=RULES, facts={})

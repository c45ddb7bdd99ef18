"""`reground-jax evaluate` with a stand-in for the model; the fixture `rendered` puts it there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reground_jax.cli import main
from reground_jax.emoji.probes import Probes
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


def write_results(world: Path) -> None:
    """results.json of the probes' detections in exported images, as another program writes it."""
    exported = json.loads((world / "instances.json").read_text())
    ids = {category["name"]: category["id"] for category in exported["categories"]}
    paths = [world / "images" / entry["file_name"] for entry in exported["images"]]
    scenes = Probes.load().scenes(np.stack([np.asarray(Image.open(path)) for path in paths]))
    results = []
    for entry, scene in zip(exported["images"], scenes, strict=True):
        for name, score, box in scene.detections:
            if name in ids:
                side = entry["width"]
                x0, y0, x1, y1 = (float(side * v) for v in box)
                bbox = [x0, y0, x1 - x0, y1 - y0]
                found = {"image_id": entry["id"], "category_id": ids[name], "bbox": bbox}
                results.append(found | {"score": float(score)})
    (world / "results.json").write_text(json.dumps(results))

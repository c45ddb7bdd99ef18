"""How well the built-in model of semantic maps follows them: held-out scenes and their labels.

The layout of a case is its caption and the map of its scene; the probes of `reground-jax evaluate`
look for the objects where the scene has them. Needs the artwork, from which the scenes are drawn:
`python -m reground_jax.emoji.artwork --out DIR`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from reground_jax.bench.harness import table
from reground_jax.emoji.artwork import load_artwork
from reground_jax.emoji.heldout import case_of
from reground_jax.emoji.probes import Probes
from reground_jax.emoji.scorer import emoji_scorer
from reground_jax.emoji.world import World, WorldConfig
from reground_jax.evaluation.cases import Case, seed_of
from reground_jax.evaluation.statistics import bootstrap_weights, interval
from reground_jax.images import to_uint8
from reground_jax.layout import Layout
from reground_jax.pipeline import Pipeline
from reground_jax.settings import Wiring

MODEL, LAYOUTS, BATCH = "emoji-sem", 250, 25
MEASURED = ("box", "text", "setting", "style", "attribute")
WIRINGS: tuple[Wiring, ...] = ("sequential", "parallel", "no_grounding")


def scenes(artwork: Path, count: int) -> tuple[list[Layout], list[Case]]:
    """The first held-out scenes: each one's caption with its map, and what it shows.

    The map shows every object, so every object counts as placed.
    """
    examples = World(WorldConfig(), load_artwork(artwork)).heldout(count)
    layouts = [Layout(e.layout.prompt, id=e.layout.id, map=e.labels) for e in examples]
    cases = []
    for example in examples:
        objects = [thing | {"boxed": True} for thing in example.facts["objects"]]
        cases.append(
            case_of(dataclasses.replace(example, facts=example.facts | {"objects": objects}))
        )
    return layouts, cases


def measure(artwork: Path, *, count: int = LAYOUTS) -> dict[str, Any]:
    """One row per wiring, with 95 % intervals, at the settings that the model recommends."""
    pipe = Pipeline.load(MODEL)
    layouts, cases = scenes(artwork, count)
    scorer = emoji_scorer(Probes.load())
    statistics = {m.name: m.statistic for m in scorer.metrics if m.name in MEASURED}
    weights = bootstrap_weights(count)
    rows = []
    for wiring in WIRINGS:
        images = pipe(
            layouts, wiring=wiring, gamma=1.0, seeds=[seed_of(case) for case in cases],
            batch_size=BATCH, output="numpy",
        )  # fmt: skip
        records = scorer.score(to_uint8(images, value_range="0..1"), cases)
        values = {name: interval(statistics[name](records, weights)) for name in MEASURED}
        rows.append({"wiring": wiring, **values})
    return {"model": MODEL, "layouts": count, "rows": rows}


def show(record: dict[str, Any]) -> str:
    rows = [["wiring", *(f"{name} %" for name in MEASURED)]]
    for row in record["rows"]:
        cells = []
        for name in MEASURED:
            value, low, high = (100 * number for number in row[name])
            cells.append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
        rows.append([row["wiring"], *cells])
    return table(rows)

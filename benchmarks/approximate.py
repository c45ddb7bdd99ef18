"""What the approximate options cost in quality: the shipped small model on held-out layouts.

Compares fewer steps of DPM-Solver++, and guidance in only part of the steps, with 50 steps of PLMS:
the probes of `reground-jax evaluate` score boxes and text, paired by layout and seed. Work is
counted in forward passes of the U-Net per image.
"""

from typing import Any

from reground_jax.bench.harness import table
from reground_jax.emoji.cases import heldout_cases
from reground_jax.emoji.probes import Probes
from reground_jax.emoji.scorer import emoji_scorer
from reground_jax.evaluation.cases import seed_of
from reground_jax.evaluation.statistics import Record, bootstrap_weights, interval
from reground_jax.images import to_uint8
from reground_jax.pipeline import Pipeline
from reground_jax.settings import Settings, guided_steps

MODEL, LAYOUTS, BATCH = "emoji", 250, 25
MEASURED = ("box", "text")
# The first is the baseline.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"solver": "plms", "num_steps": 50},
    {"solver": "dpmpp_2m", "num_steps": 25},
    {"solver": "dpmpp_2m", "num_steps": 20},
    {"solver": "plms", "num_steps": 50, "guidance_interval": (0.0, 0.5)},
    {"solver": "plms", "num_steps": 50, "guidance_interval": (0.1, 0.6)},
)


def measure(gamma: float, *, layouts: int = LAYOUTS) -> dict[str, Any]:
    """One row per option, with 95 % intervals and paired differences."""
    pipe, cases = Pipeline.load(MODEL), heldout_cases(layouts)
    scorer = emoji_scorer(Probes.load())
    statistics = {m.name: m.statistic for m in scorer.metrics if m.name in MEASURED}
    (frechet,) = scorer.distances
    weights = bootstrap_weights(layouts)
    rows, first = [], {}
    for option in OPTIONS:
        settings = Settings(gamma=gamma, guidance_scale=4.0, wiring="sequential", **option)
        images = pipe(
            [case.layout for case in cases], settings, seeds=[seed_of(case) for case in cases],
            batch_size=BATCH, output="numpy",
        )  # fmt: skip
        records: list[Record] = scorer.score(to_uint8(images, value_range="0..1"), cases)
        values = {name: statistics[name](records, weights) for name in MEASURED}
        first = first or values
        rows.append(
            {
                **option,
                "forwards": forwards(pipe, settings),
                **{name: interval(values[name]) for name in MEASURED},
                "differences": {n: interval(values[n] - first[n]) for n in MEASURED},
                "frechet": frechet.measure(records),
            }
        )
    return {"model": MODEL, "layouts": layouts, "gamma": gamma, "rows": rows}


def forwards(pipe: Pipeline, settings: Settings) -> int:
    """Forward passes of the U-Net per image, counting both guidance branches."""
    guided = guided_steps(settings.guidance_interval, settings.num_steps)
    return sum(1 + (int(step) in guided) for step in pipe.programs.plan(settings).step)


def show(record: dict[str, Any]) -> str:
    measured = [cell for name in MEASURED for cell in (f"{name} %", "change")]
    rows = [["solver", "steps", "guidance in", "forwards", *measured, "frechet"]]
    for row in record["rows"]:
        start, stop = row.get("guidance_interval", (0.0, 1.0))
        cells = [row["solver"], str(row["num_steps"]), f"{start:g}..{stop:g}", str(row["forwards"])]
        for name in MEASURED:
            change, low, high = (100 * number for number in row["differences"][name])
            cells += [f"{100 * row[name][0]:.1f}", f"{change:+.1f} [{low:+.1f}, {high:+.1f}]"]
        rows.append([*cells, f"{row['frechet']:.2f}"])
    return table(rows)

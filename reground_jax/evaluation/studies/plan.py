"""What a study will take: images and arithmetic, counted before anything is made."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reground_jax.basics.json_text import parse_json
from reground_jax.batch.store import open_store
from reground_jax.config import ModelConfig
from reground_jax.counter import run_macs, step_macs, text_encoder_macs, vae_decoder_macs
from reground_jax.evaluation.studies.parts import Part
from reground_jax.evaluation.studies.study import Made, Study
from reground_jax.sampling.solvers import SOLVERS
from reground_jax.sampling.sweep import Schedule, numbered
from reground_jax.settings import Settings, guided_steps

TERA = 1e12
RATE = "rate.json"
# Where a rate is neither given nor measured: a peak in bfloat16 by datasheet, and the share of it
# that is assumed, not measured.
ASSUMED = {
    "one H100, 32 % of 989 TFLOP/s (assumed)": 0.32 * 989,
    "TPU v5e-8, 47 % of 8 x 197 TFLOP/s (assumed)": 0.47 * 8 * 197,
}


@dataclass(frozen=True)
class Line:
    """A run of the study: images that it has, images to make, and what they take."""

    what: str
    finished: int
    missing: int
    tflop: float  # of the missing ones


def save_rate(study: Study, configs: Mapping[str, ModelConfig], made: Sequence[Made]) -> None:
    """Keeps the TFLOP/s that were reached, with compiling, for later plans of the study."""
    seconds = sum(run.seconds for run in made)
    if seconds > 0:
        total = sum(_each(run.part, configs) * run.images for run in made)
        study.save(RATE, json.dumps({"tflops": float(f"{total / seconds:.3g}")}).encode() + b"\n")


def measured_rate(study: Study) -> float | None:
    """The TFLOP/s of an earlier run of the study, if there was one."""
    try:
        found = parse_json(open_store(study.out).read(RATE))
    except (FileNotFoundError, ValueError):
        return None
    rate = found.get("tflops") if isinstance(found, dict) else None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def plan(study: Study, configs: Mapping[str, ModelConfig]) -> list[Line]:
    """A line per run, in the order in which they are made. configs: by model of the study."""
    return [_line(part, configs) for part in study.parts]


def _each(part: Part, configs: Mapping[str, ModelConfig]) -> float:
    """TFLOP per image of a run."""
    variants = [settings for settings, _ in part.run.variants()]
    return flop(configs[part.series.model], variants) / len(variants) / TERA


def _line(part: Part, configs: Mapping[str, ModelConfig]) -> Line:
    finished = part.images(part.finished())
    missing = part.images(part.units()) - finished
    gammas = ", ".join(f"{gamma:g}" for gamma in part.run.gammas)
    what = f"{part.series.model}, {part.cases.name}, {part.series.method}, gamma {gammas}"
    return Line(what, finished, missing, missing * _each(part, configs))


def flop(config: ModelConfig, variants: Sequence[Settings]) -> float:
    """FLOP of one layout in variants that differ in gamma, with the steps they share counted once.

    U-Net, VAE and text encoder, by counter.py; without the passes of attention guidance.
    """
    settings = variants[0]
    unet, factor = config.unet, config.vae.downsampling
    height, width = (
        unet.sample_size if size is None else size // factor
        for size in (settings.height, settings.width)
    )
    plan = SOLVERS[settings.solver].plan(config.schedule, settings.num_steps, eta=settings.eta)
    evaluations = np.bincount(np.asarray(plan.step), minlength=settings.num_steps)
    both = guided_steps(settings.guidance_interval, settings.num_steps)
    schedules = [Schedule.of(variant, unet) for variant in variants]
    rows = numbered(schedules)
    no_fusers = settings.wiring == "no_grounding"

    @functools.cache
    def step_of(grounded: bool, guided: bool) -> int:
        return step_macs(
            unet, size=(height, width), grounded=grounded, guided=guided,
            max_boxes=settings.max_boxes,
        )  # fmt: skip

    macs, seen = 0.0, set[bytes]()
    for schedule, row in zip(schedules, rows, strict=True):
        for step in range(settings.num_steps):
            if (prefix := row[: step + 1].tobytes()) in seen:
                continue
            seen.add(prefix)
            guided = settings.guidance_scale != 1 and step in both
            grounded = step < schedule.grounded_steps and not no_fusers
            macs += float(evaluations[step]) * step_of(grounded, guided)
    macs += run_macs(
        unet, height, width, num_steps=0, grounded_steps=0, guided=settings.guidance_scale != 1,
        max_boxes=settings.max_boxes,
    )  # fmt: skip
    macs += len(variants) * vae_decoder_macs(config.vae, height, width)
    macs += sum(text_encoder_macs(encoder.network) for encoder in config.text_encoders)
    return 2 * macs


def text(lines: Sequence[Line], study: Study, rate: float | None, missing: Sequence[str]) -> str:
    """The plan in words. rate: TFLOP/s, if it is known. missing: what keeps it from being run."""
    made, left = sum(line.finished for line in lines), sum(line.missing for line in lines)
    total = sum(line.tflop for line in lines)
    cells = [["images", "to make", "TFLOP", "run"]]
    cells += [
        [str(line.finished + line.missing), str(line.missing), f"{line.tflop:,.1f}", line.what]
        for line in lines
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    parts = [
        "  ".join([*(c.rjust(w) for c, w in zip(row, widths, strict=False)), row[3]])
        for row in cells
    ]
    parts.append(f"{left} of {made + left} images are to be made: {total:,.1f} TFLOP")
    parts += [f"{_time(total / per_second)} {where}" for where, per_second in _rates(rate)]
    scored = ", ".join(scorer.name for scorer in study.scorers) or "nothing"
    photographs = sum(len(gallery.cases) for gallery in study.all_photographs())
    parts.append(
        f"scored by {scored}"
        + (f", and {photographs} photographs, too" if photographs else "")
        + "; scoring is not counted in these times"
    )
    parts += [f"missing: {what}" for what in missing]
    return "\n".join(parts)


def _rates(rate: float | None) -> list[tuple[str, float]]:
    if rate is None:
        return [(f"on {where}", per_second) for where, per_second in ASSUMED.items()]
    return [(f"at {rate:g} TFLOP/s", rate)]


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"

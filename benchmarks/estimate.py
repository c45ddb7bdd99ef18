"""Projected images per hour and cost per million images, on fleets that this project never ran on.

Every assumption is below, and is printed. On TPU, a run takes the time that the TPU's compiler
estimates for its programs, as corrected in the last full record of `tpu-aot`. A GPU works at a
share of its datasheet's peak: the one that was measured on an H100.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tpu_aot import LEFT_OUT
from reground_jax.bench.aot import GROUNDED, UNGROUNDED
from reground_jax.bench.chips import CHIPS
from reground_jax.bench.harness import datasheet_peak, table
from reground_jax.bench.presets import preset_config
from reground_jax.config import ModelConfig
from reground_jax.counter import run_macs, vae_decoder_macs
from reground_jax.sampling.gate import gate_table, grounded_steps
from reground_jax.sampling.solvers import SOLVERS
from reground_jax.settings import Settings

DTYPE = "bfloat16"
RECORDS = Path(__file__).parent / "records"
COMPILED_FOR = ("wiring", "height", "width", "max_boxes")  # besides guidance


@dataclass(frozen=True)
class Fleet:
    name: str
    chips: int
    price: float  # US dollars per chip and hour: rough on-demand list prices, not quotes
    tpu: str | None = None  # a key of CHIPS
    gpu: str = ""  # prefix of `Device.device_kind`
    share: float = 0.0  # of a GPU's peak
    reason: str = ""  # for the share


FLEETS = (
    Fleet("TPU v5e-256", 256, 1.20, tpu="v5e"),
    Fleet("TPU v6e-256", 256, 2.70, tpu="v6e"),
    Fleet("64 H100", 64, 3.00, gpu="NVIDIA H100", share=0.358,
          reason="measured on one, batches of 8: records/2026-11-27-0204-throughput-sd14"),
    Fleet("64 H200", 64, 4.00, gpu="NVIDIA H200", share=0.358, reason="assumed: that of the H100"),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What an image needs."""

    evaluations: int  # of the U-Net
    grounded: int  # of these, with fusers
    flop: int  # of U-Net and VAE

    @classmethod
    def of(cls, config: ModelConfig, settings: Settings) -> "Run":
        solver, steps = SOLVERS[settings.solver], settings.num_steps
        step = np.asarray(solver.plan(config.schedule, steps, eta=settings.eta).step)
        on = int((step < grounded_steps(gate_table(settings.gamma, steps))).sum())
        side = config.unet.sample_size
        unet = run_macs(
            config.unet, side, side, num_steps=len(step), grounded_steps=on,
            guided=settings.guidance_scale != 1, max_boxes=settings.max_boxes,
        )  # fmt: skip
        return cls(len(step), on, 2 * (unet + vae_decoder_macs(config.vae, side, side)))


def estimate(preset: str, settings: Settings) -> dict[str, Any]:
    """The table's rows, one per fleet, with what they are derived from.

    Raises ValueError without a record of `tpu-aot` for the same preset and settings.
    """
    config = preset_config(preset)
    run = Run.of(config, settings)
    folder, compiled = last_record(preset)
    check_same(compiled["settings"], settings.to_json(), folder.name)
    return {
        "image_tflop": run.flop / 1e12,
        "image_pixels": config.side,
        "evaluations": run.evaluations,
        "grounded_evaluations": run.grounded,
        "settings": settings.to_json(),
        "compiled": folder.name,
        "images_per_chip": compiled["images_per_chip"],
        "rows": [_row(fleet, run, compiled) for fleet in FLEETS],
    }


def last_record(preset: str) -> tuple[Path, dict[str, Any]]:
    """The newest record of `tpu-aot --full`. Raises ValueError if there is none."""
    for folder in sorted(RECORDS.glob(f"*-tpu-aot-{preset}"), reverse=True):
        record = json.loads((folder / "record.json").read_text())
        if all(GROUNDED in chip["programs"] for chip in record["chips"].values()):
            return folder, record
    raise ValueError(
        f"no record of the preset {preset!r} compiled for TPU: run `python -m benchmarks tpu-aot "
        f"--full --preset {preset} --record` first, which takes an hour or two"
    )


def check_same(compiled: dict[str, Any], wanted: dict[str, Any], record: str) -> None:
    """Raises ValueError for settings whose programs are not those of the record."""
    for name in COMPILED_FOR:
        if compiled[name] != wanted[name]:
            raise ValueError(
                f"{name} is {wanted[name]!r}, but {record} was compiled for {compiled[name]!r}"
            )
    if (compiled["guidance_scale"] == 1) != (wanted["guidance_scale"] == 1):
        raise ValueError(f"{record} was compiled with guidance on or off, unlike these settings")


def _row(fleet: Fleet, run: Run, compiled: dict[str, Any]) -> dict[str, Any]:
    if fleet.tpu is not None:
        peak = CHIPS[fleet.tpu].flops
        rate = _compiled_rate(compiled["chips"][fleet.tpu], compiled["images_per_chip"], run)
        share, reason = rate * run.flop / peak, "the compiler's estimate, corrected"
    else:
        known = datasheet_peak(fleet.gpu, DTYPE)
        assert known is not None, fleet.gpu
        peak, share, reason = known, fleet.share, fleet.reason
        rate = share * peak / run.flop
    hourly = rate * fleet.chips * 3600
    return {
        "fleet": fleet.name,
        "chips": fleet.chips,
        "peak_tflops": peak / 1e12,
        "share": share,
        "reason": reason,
        "price": fleet.price,
        "images_per_s_and_chip": rate,
        "images_per_hour": hourly,
        "hours_per_million": 1e6 / hourly,
        "dollars_per_million": 1e6 / hourly * fleet.chips * fleet.price,
    }


def _compiled_rate(chip: dict[str, Any], images: int, run: Run) -> float:
    """Images per second of one chip."""
    programs = chip["programs"]
    steps = {name: programs[name]["step"]["corrected_ms"] for name in (GROUNDED, UNGROUNDED)}
    once = sum(sum(programs[name]["estimated_ms"].values()) for name in ("prepare", "decode"))
    plain = run.evaluations - run.grounded
    ms = once + run.grounded * steps[GROUNDED] + plain * steps[UNGROUNDED]
    return images / (ms / 1e3)


def show(record: dict[str, Any]) -> str:
    settings, pixels = record["settings"], record["image_pixels"]
    head = ["fleet", "share of peak", "images/s/chip", "images/hour", "$/chip-hour", "$/million"]
    rows = [
        [
            row["fleet"], f"{100 * row['share']:.0f} % of {row['peak_tflops']:.0f} TFLOP/s",
            f"{row['images_per_s_and_chip']:.2f}", f"{row['images_per_hour']:,.0f}",
            f"{row['price']:.2f}", f"{row['dollars_per_million']:,.0f}",
        ]
        for row in record["rows"]
    ]  # fmt: skip
    notes = [f"{row['fleet']}: share of peak is {row['reason']}" for row in record["rows"]]
    return "\n".join(
        [
            f"Projected, not measured: {settings['num_steps']} steps of {settings['solver']}, "
            f"guidance, gamma {settings['gamma']}, {pixels}x{pixels}, {DTYPE}: "
            f"{record['evaluations']} evaluations of the U-Net, {record['grounded_evaluations']} "
            f"of them with fusers; {record['image_tflop']:.1f} TFLOP per image (U-Net and VAE, "
            "from the counter).",
            "Assumes that every chip is always busy, and that only chip hours cost money.",
            table([head, *rows]),
            *notes,
            f"TPU: {record['compiled']}, {record['images_per_chip']} images per chip; {LEFT_OUT}.",
        ]
    )

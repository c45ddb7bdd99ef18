"""Projected images per hour and cost per million images, on hardware this project never ran on.

A chip's rate is its bfloat16 datasheet peak times an assumed share of it, divided by the FLOP of
one image from our counter. Nothing is measured; every assumption is below, and is printed.
"""

from dataclasses import dataclass
from typing import Any

from reground_jax.bench.harness import datasheet_peak, table
from reground_jax.bench.presets import preset_config
from reground_jax.counter import run_macs, vae_decoder_macs
from reground_jax.sampling.gate import gate_table, grounded_steps
from reground_jax.settings import Settings

DTYPE = "bfloat16"


@dataclass(frozen=True)
class Fleet:
    name: str
    chip: str  # prefix of `Device.device_kind`
    chips: int
    share: float  # of the datasheet peak that a run reaches
    reason: str  # for the share
    price: float  # US dollars per chip and hour


# SDXL in JAX reached 62.5 % of a v5e's peak and 41.6 % of a v6e's in MLPerf Inference 4.1. Matrix
# units work on tiles of 128 (v5e) and 256 (v6e): with padding to these, SDXL's products grow by
# factors of 1.15 and 1.54, and GLIGEN's, with heads of width 40, by 1.53 and 2.52. GLIGEN's share
# is reduced accordingly. Prices are rough on-demand list prices, not quotes: use your own.
FLEETS = (
    Fleet("TPU v5e-256", "TPU v5 lite", 256, 0.625 * 1.15 / 1.53,
          "SDXL's 62.5 % in MLPerf 4.1, x 1.15/1.53 for padding to 128", 1.20),
    Fleet("TPU v6e-256", "TPU v6 lite", 256, 0.416 * 1.54 / 2.52,
          "SDXL's 41.6 % in MLPerf 4.1, x 1.54/2.52 for padding to 256", 2.70),
    Fleet("64 H200", "NVIDIA H200", 64, 0.32,
          "40 % of the 790 TFLOP/s that matrix products reach", 4.00),
)  # fmt: skip


def estimate(preset: str, settings: Settings) -> dict[str, Any]:
    """The table's rows, one per fleet, with the counts they are derived from."""
    config = preset_config(preset)
    side = config.unet.sample_size
    grounded = grounded_steps(gate_table(settings.gamma, settings.num_steps))
    unet = run_macs(
        config.unet, side, side, num_steps=settings.num_steps, grounded_steps=grounded,
        max_boxes=settings.max_boxes,
    )  # fmt: skip
    flop = 2 * (unet + vae_decoder_macs(config.vae, side, side))
    return {
        "image_tflop": flop / 1e12,
        "image_pixels": side * config.vae.downsampling,
        "settings": settings.to_json(),
        "rows": [_row(fleet, flop) for fleet in FLEETS],
    }


def _row(fleet: Fleet, flop: float) -> dict[str, Any]:
    peak = datasheet_peak(fleet.chip, DTYPE)
    assert peak is not None, fleet.chip
    rate = fleet.share * peak / flop
    hourly = rate * fleet.chips * 3600
    return {
        "fleet": fleet.name,
        "chips": fleet.chips,
        "peak_tflops": peak / 1e12,
        "share": fleet.share,
        "reason": fleet.reason,
        "price": fleet.price,
        "images_per_s_and_chip": rate,
        "images_per_hour": hourly,
        "hours_per_million": 1e6 / hourly,
        "dollars_per_million": 1e6 / hourly * fleet.chips * fleet.price,
    }


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
    notes = [f"{row['fleet']}: share of peak from {row['reason']}" for row in record["rows"]]
    return "\n".join(
        [
            f"Projected, not measured: {settings['num_steps']} steps, guidance, gamma "
            f"{settings['gamma']}, {pixels}x{pixels}, {DTYPE}: {record['image_tflop']:.1f} TFLOP "
            "per image (U-Net and VAE, from the counter).",
            "Assumes that every chip is always busy, and that only chip hours cost money.",
            table([head, *rows]),
            *notes,
        ]
    )

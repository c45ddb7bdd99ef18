"""diffusers' StableDiffusionGLIGENPipeline vs. ours: same weights, inputs and steps, in turn.

Each side has its own process, which waits while the other one works. A repetition measures one
guided denoising step with fusers on (the median of a run's steps without the first), with its share
of what a large matrix product reaches in our process just before, and a whole run at gamma 0.3,
from text to image. Both results must agree, or the numbers would be meaningless.
"""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import Process, say
from reground_jax.bench.harness import GIB, table
from reground_jax.bench.presets import preset_config
from reground_jax.counter import step_macs

GAMMA = 0.3
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}  # of the largest value, after all steps


@dataclass(frozen=True)
class Options:
    preset: str = "sd14"
    steps: int = 10
    repeats: int = 3
    dtype: str = "float32"
    parallel: bool = False  # also measure our parallel wiring, which diffusers does not have
    compile: bool = False  # torch.compile for diffusers, on a GPU

    @property
    def wirings(self) -> tuple[str, ...]:
        return ("sequential", "parallel") if self.parallel else ("sequential",)


def side(name: str, folder: Path, options: Options) -> Process:
    facts = json.dumps(asdict(options) | {"wirings": options.wirings})
    return Process(name, folder / f"{name}.log", "benchmarks.sides", name, str(folder), facts)


def prepare(folder: Path, options: Options) -> dict[str, Any]:
    """Writes random weights in diffusers' format and converts them, each in its own process."""
    facts = {}
    for stage in ("write", "convert"):
        with side(stage, folder, options) as process:
            facts[stage] = process.reply()
        say(stage, facts[stage])
    return facts


def compare(folder: Path, options: Options) -> dict[str, Any]:
    """Measures both sides on the models in `folder` (`prepare`).

    Returns loading facts, every repetition, the errors of latents and image, and the ratios.
    """
    columns = [("theirs", "sequential"), *(("ours", wiring) for wiring in options.wirings)]
    repetitions: list[dict[str, Any]] = []
    needed = 2 * step_macs(preset_config(options.preset).unet)  # of either side, as we count
    loaded, errors = {}, {}
    with side("ours", folder, options) as ours:
        loaded["ours"] = ours.reply()  # before the other one starts, so that loading is undisturbed
        with side("theirs", folder, options) as theirs:
            loaded["theirs"] = theirs.reply()
            say("loaded and warm", loaded)
            sides = {"ours": ours, "theirs": theirs}
            for index in range(options.repeats):
                peak, measured = ours.ask(peak=True)["flops"], {}
                # The order alternates, so that neither side always goes first.
                for name, wiring in columns if index % 2 else columns[::-1]:
                    facts = measure(sides[name], folder, wiring)
                    facts["share"] = needed / facts["step"] / peak
                    measured[label(name, wiring)] = facts
                repetitions.append(measured)
                say(f"repetition {index}", measured)
                errors = differences(folder)
    ratios = {
        wiring: [ratio(measured, label("ours", wiring)) for measured in repetitions]
        for wiring in options.wirings
    }
    return {
        "options": asdict(options), "loaded": loaded, "repetitions": repetitions,
        "errors": errors, "ratios": ratios,
    }  # fmt: skip


def label(name: str, wiring: str) -> str:
    return name if wiring == "sequential" else f"{name}, {wiring}"


def measure(process: Process, folder: Path, wiring: str) -> dict[str, Any]:
    """One repetition of one side; leaves its arrays in `folder`."""
    files = [str(folder / f"{process.name}-{wiring}-{kind}.npy") for kind in ("latents", "image")]
    steps = process.ask(gamma=1.0, wiring=wiring, image=False, file=files[0])
    whole = process.ask(gamma=GAMMA, wiring=wiring, image=True, file=files[1])
    return {
        "step": statistics.median(steps["steps"]),
        "steps": steps["steps"],
        "run": whole["seconds"],
        "memory": whole["peak_memory"],
    }


def ratio(measured: dict[str, Any], ours: str) -> dict[str, float]:
    """Theirs over ours: above 1, ours is faster or uses less memory."""
    kinds = ("step", "run", "memory")
    return {kind: measured["theirs"][kind] / measured[ours][kind] for kind in kinds}


def differences(folder: Path) -> dict[str, float]:
    """max |ours - theirs| / max |theirs| of the latents (gamma 1) and of the image (GAMMA)."""
    errors = {}
    for kind in ("latents", "image"):
        ours, theirs = (
            np.load(folder / f"{side}-sequential-{kind}.npy") for side in ("ours", "theirs")
        )
        errors[kind] = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return errors


def show(record: dict[str, Any]) -> str:
    """The table of a comparison; its last line holds the median ratios of the same wiring."""
    units = {"step": 1, "run": 1, "memory": GIB}
    heading = ["repetition", "step s", f"run s, gamma {GAMMA}", "GiB", "of peak"]
    rows = [[*heading, *(f"ratio {kind}" for kind in units)]]
    for index, measured in enumerate(record["repetitions"]):
        for side, facts in sorted(measured.items(), reverse=True):
            row = [f"{index} {side}", *(f"{facts[kind] / units[kind]:.3f}" for kind in units)]
            row.append(f"{100 * facts['share']:.0f} %")
            rows.append([*row, *(f"{value:.3f}" for value in ratio(measured, side).values())])
    lines = [table(rows)]
    lines += [f"largest relative error, {kind}: {e:.1e}" for kind, e in record["errors"].items()]
    for wiring, ratios in reversed(record["ratios"].items()):
        middles = [f"{kind} {statistics.median(r[kind] for r in ratios):.3f}" for kind in units]
        name = "" if wiring == "sequential" else f"{wiring}: "
        lines.append(f"{name}ratio {' '.join(middles)}")
    return "\n".join(lines)


def agrees(record: dict[str, Any]) -> bool:
    return max(record["errors"].values()) < TOLERANCE[record["options"]["dtype"]]

"""What the TPU's compiler says of our programs, on a machine without a TPU.

Nothing runs. There are three kinds of figures, and none of them is a measurement:

laid out   bytes of arguments, temporaries and code, collectives, and whether a program compiles
estimated  the compiler's cost model: `estimated_cycles` of every operation times known trip counts,
           over the chip's clock. No waits for memory, no launches; wrong by up to ten times for
           some reductions
static     scheduled instructions of an attention call (bundles.py): a lower bound

"corrected" is the estimate with its attention cores replaced by the static figures of the same
calls, because that is where the cost model is known to be wrong.
"""

import importlib.metadata
import math
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax

import reground_jax
from benchmarks.bundles import static
from reground_jax.bench.aot import (
    GROUNDED,
    UNGROUNDED,
    Call,
    Compiled,
    compiled,
    sampling_calls,
    transformer_call,
)
from reground_jax.bench.attention_shapes import AttentionCall, attention_calls
from reground_jax.bench.chips import CHIPS, Chip, tpu_devices
from reground_jax.bench.harness import table
from reground_jax.bench.presets import preset_config
from reground_jax.config import ModelConfig
from reground_jax.counter import SCORES, step_macs
from reground_jax.hardware import Hardware
from reground_jax.networks.attention import choose_backend
from reground_jax.settings import Settings

FORMS = ("plain", "lean", "pallas")
TRAINING, BLOCK = "training step", "transformer block"
OTHER = f"{GROUNDED}, another batch"  # what an image more takes
QUICK = (BLOCK, "encode", "prepare", "decode")
SLOW = (TRAINING, GROUNDED, UNGROUNDED, OTHER)  # the slowest first
RECIPE = Path(reground_jax.__file__).parent / "training/configs/gligen_sd14/grounding_parallel.json"
AT_ONCE = 2  # compilers; each takes a core and, for a step of full size, gigabytes of memory
LEFT_OUT = "left out are waits for memory, launches, text encoding, and the host"
MIB = 2**20

Forms = dict[AttentionCall, dict[str, dict[str, Any]]]  # of every call, what each form was found


def measure(preset: str, settings: Settings, images: int, *, full: bool) -> dict[str, Any]:
    """Everything, chip by chip, for `images` per chip. full: also the steps, for an hour or two."""
    jax.config.update("jax_platforms", "cpu")  # else JAX looks for a TPU that libtpu could use
    work = Work(preset_config(preset), settings, images)
    return {
        "libtpu": importlib.metadata.version("libtpu"),
        "settings": settings.to_json(),
        "images_per_chip": images,
        "chips": {chip: work.on(chip, full=full) for chip in CHIPS},
    }


@dataclass(frozen=True)
class Work:
    """What is compiled for one device of every chip."""

    config: ModelConfig
    settings: Settings
    images: int

    def on(self, chip: str, *, full: bool) -> dict[str, Any]:
        calls, names = self.attention_calls(), (*SLOW, *QUICK) if full else QUICK
        with ThreadPoolExecutor(AT_ONCE) as pool:
            forms = dict(zip(calls, pool.map(lambda c: _forms(chip, c), calls), strict=True))
        # A process each: their compilers keep gigabytes until they end.
        with ProcessPoolExecutor(AT_ONCE, get_context("spawn"), max_tasks_per_child=1) as pool:
            made = pool.map(self.compile, [chip] * len(names), names)
            programs = dict(zip(names, made, strict=True))
        for name in (GROUNDED, UNGROUNDED):
            if name in programs:
                cores = _cores(calls, forms, fusers=name == GROUNDED)
                macs = step_macs(
                    self.config.unet, grounded=name == GROUNDED,
                    guided=self.settings.guidance_scale != 1, max_boxes=self.settings.max_boxes,
                )  # fmt: skip
                needed = 2 * self.images * macs
                programs[name]["step"] = _step_time(programs[name], CHIPS[chip], needed, cores)
        if full:
            needed = self.images * self.training_flop()
            programs[TRAINING]["step"] = _step_time(programs[TRAINING], CHIPS[chip], needed, None)
            here, there = programs[GROUNDED]["bytes"]["all"], programs.pop(OTHER)["bytes"]["all"]
            each = (here - there) / (self.images - self.other_images)
            room = CHIPS[chip].memory - here
            programs[GROUNDED]["largest_batch"] = self.images + math.floor(room / each)
        attention = [
            {"kind": call.kind, "shape": str(call.shape), "flop": 2 * call.shape.macs} | found
            for call, found in forms.items()
        ]
        return {"attention": attention, "programs": programs}

    def attention_calls(self) -> Counter[AttentionCall]:
        side, settings = self.config.unet.sample_size, self.settings
        branches = self.images * (1 if settings.guidance_scale == 1 else 2)
        return attention_calls(self.config, side, side, branches, settings.max_boxes)

    def compile(self, chip: str, name: str) -> dict[str, Any]:
        """What was found in one program."""
        jax.config.update("jax_platforms", "cpu")
        _say(f"{chip}: {name}")
        device = tpu_devices(CHIPS[chip].topology)[0]
        hardware = Hardware((device,), "bfloat16", None, "shard_map")
        own = self.config, hardware, self.settings
        if name == TRAINING:
            call = self.training_call(device)
        elif name == BLOCK:
            call = transformer_call(*own, self.images)
        elif name == OTHER:
            call = sampling_calls(*own, self.other_images)[GROUNDED]
        else:
            call = sampling_calls(*own, self.images)[name]
        return _program(CHIPS[chip], compiled(call))

    @property
    def other_images(self) -> int:
        return 1 if self.images > 1 else 2

    def training_call(self, device: Any) -> Call:
        """A step of GLIGEN's recipe, with as many images."""
        from reground_jax.training.config import StageConfig
        from reground_jax.training.dry_run import step_call

        shipped = StageConfig.load(RECIPE)
        recipe = replace(shipped.recipe, batch_size=self.images)
        config = replace(shipped, recipe=recipe, wiring=self.settings.wiring)
        return step_call("grounding", config, self.config, (device,), self.config.side)[0]

    def training_flop(self) -> int:
        """Of one image in one step."""
        from reground_jax.training.costs import step_flops

        return step_flops("grounding", self.config, self.config.side, remat=True)


def _forms(chip: str, call: AttentionCall) -> dict[str, dict[str, Any]]:
    _say(f"{chip}: {call.kind} attention, {call.shape}")
    return {form: static(chip, form, call.shape) for form in FORMS}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _program(chip: Chip, made: Compiled) -> dict[str, Any]:
    inside, outside = made.program.cycles()
    parts = inside or outside
    return {
        "compile_s": made.seconds,
        "bytes": made.sizes(),
        "collectives": made.program.collectives(),
        "estimated_ms": {part: 1e3 * n / chip.clock for part, n in parts.most_common()},
    }


def _cores(calls: Counter[AttentionCall], forms: Forms, *, fusers: bool) -> float | None:
    """Static ms of a step's attention cores in their default forms; None if one is not known."""
    total = 0.0
    for call, times in calls.items():
        if call.kind == "fuser" and not fusers:
            continue
        branches, queries, keys, heads, width = call.shape
        form = choose_backend("tpu", "bfloat16", (branches, queries, heads, width), keys)
        found = forms[call][form].get("static_ms")
        if found is None:
            return None
        total += times * found
    return total


def _step_time(
    program: dict[str, Any], chip: Chip, needed: int, cores: float | None
) -> dict[str, Any]:
    """Of one step that needs `needed` FLOP: as estimated, and with static attention cores."""
    spent = program["estimated_ms"]
    raw = sum(spent.values())
    found = {"tflop": needed / 1e12, "estimated_ms": raw}
    found["estimated_share"] = needed / (raw / 1e3) / chip.flops
    if cores is not None:
        corrected = raw - sum(spent.get(part, 0) for part in SCORES) + cores
        found |= {"attention_static_ms": cores, "corrected_ms": corrected}
        found["corrected_share"] = needed / (corrected / 1e3) / chip.flops
    return found


def show(record: dict[str, Any]) -> str:
    settings = record["settings"]
    lines = [
        f"Compiled with libtpu {record['libtpu']}, not run: {record['images_per_chip']} images per "
        f"chip, guidance, {settings['wiring']}, {settings['solver']}, bfloat16.",
        "Figures are laid out (MiB), estimated by the compiler (est.; of pallas, only what is "
        "around its kernel) or counted in its schedule "
        f"(static); none is a measurement: {LEFT_OUT}.",
    ]
    for chip, found in record["chips"].items():
        lines += ["", f"{chip}: attention", _attention(chip, found["attention"])]
        lines += ["", f"{chip}: programs", _programs(found["programs"])]
        for name, program in found["programs"].items():
            lines += _step(name, program)
    return "\n".join(lines)


def _attention(chip: str, rows: list[dict[str, Any]]) -> str:
    head = ["branches x queries over keys, heads x width", "ideal ms"]
    shown = [[*head, *(f"{form} {kind}" for form in FORMS for kind in ("est.", "static", "MiB"))]]
    for row in rows:
        cells = [f"{row['kind']} {row['shape']}", f"{1e3 * row['flop'] / CHIPS[chip].flops:.3f}"]
        for form in FORMS:
            found = row[form]
            if "error" in found:
                cells += ["fails", "", ""]
                continue
            known = found["static_ms"]
            cells += [f"{found['estimated_ms']:.2f}", "" if known is None else f"{known:.2f}"]
            cells += [f"{found['temporaries'] / MIB:.0f}"]
        shown.append(cells)
    return table(shown)


def _programs(programs: dict[str, Any]) -> str:
    kinds = ("arguments", "output", "temporaries", "code", "all")
    rows = [["MiB per chip", *kinds, "collectives", "est. ms", "compiled in s"]]
    for name, program in programs.items():
        row = [name, *(f"{program['bytes'][kind] / MIB:.0f}" for kind in kinds)]
        row += [", ".join(program["collectives"]) or "none"]
        spent = sum(program["estimated_ms"].values())
        rows.append([*row, f"{spent:.1f}", f"{program['compile_s']:.0f}"])
    return table(rows)


def _step(name: str, program: dict[str, Any]) -> list[str]:
    spent = program["estimated_ms"]
    parts = ", ".join(f"{part} {ms:.1f}" for part, ms in spent.items() if ms >= 0.05)
    lines = ["", f"{name}: est. ms by part: {parts}"]
    if step := program.get("step"):
        raw = f"{step['estimated_ms']:.1f} ms, {100 * step['estimated_share']:.1f} % of peak"
        lines.append(f"  one step: {step['tflop']:.2f} TFLOP; est. {raw}")
        if "corrected_ms" in step:
            lines[-1] += (
                f"; corrected (attention cores static, {step['attention_static_ms']:.1f} ms) "
                f"{step['corrected_ms']:.1f} ms, {100 * step['corrected_share']:.1f} %"
            )
    if largest := program.get("largest_batch"):
        lines.append(f"  largest batch that fits, by two that were compiled: {largest} images")
    return lines

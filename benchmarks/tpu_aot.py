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
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.bundles import Shape, static
from reground_jax.bench.aot import Compiled, compiled, sampling_calls
from reground_jax.bench.chips import CHIPS, tpu_devices
from reground_jax.bench.harness import table
from reground_jax.bench.presets import preset_config
from reground_jax.config import ModelConfig
from reground_jax.counter import SCORES, run_macs
from reground_jax.hardware import Hardware
from reground_jax.settings import Settings

FORMS = ("plain", "lean", "pallas")
QUICK = ("encode", "prepare", "decode")
STEPS = {"steps with fusers": True, "steps without": False}
MIB = 2**20

Say = Callable[[str], None]


def measure(preset: str, settings: Settings, images: int, *, full: bool) -> dict[str, Any]:
    """Everything, chip by chip, for `images` per chip. full: the steps themselves, in minutes."""
    jax.config.update("jax_platforms", "cpu")  # else JAX looks for a TPU that libtpu could use
    config = preset_config(preset)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    chips = {chip: _chip(chip, config, settings, images, full, say) for chip in CHIPS}
    return {
        "libtpu": importlib.metadata.version("libtpu"),
        "settings": settings.to_json(),
        "images_per_chip": images,
        "chips": chips,
    }


def _chip(
    chip: str, config: ModelConfig, settings: Settings, images: int, full: bool, say: Say
) -> dict[str, Any]:
    branches = images * (1 if settings.guidance_scale == 1 else 2)
    calls = attention_calls(config, settings, branches)
    forms = {}
    for shape in calls:
        say(f"{chip}: attention {shape}")
        forms[shape] = {form: static(chip, form, shape) for form in FORMS}
    hardware = Hardware(tpu_devices(CHIPS[chip].topology)[:1], "bfloat16", None, "shard_map")
    programs = {}
    for name, call in sampling_calls(config, hardware, settings, images).items():
        if name in QUICK or full:
            say(f"{chip}: {name}")
            programs[name] = _program(chip, compiled(call))
    for name in STEPS.keys() & programs.keys():
        _correct(programs[name], chip, config, settings, images, calls, forms, STEPS[name])
    if full:
        say(f"{chip}: steps with fusers, one image")
        one = compiled(sampling_calls(config, hardware, settings, 1)["steps with fusers"])
        each = (programs["steps with fusers"]["bytes"]["all"] - one.bytes) / (images - 1)
        room = CHIPS[chip].memory - one.bytes
        programs["steps with fusers"]["largest_batch"] = 1 + int(room / each)
    return {
        "attention": [{"shape": str(shape), "flop": shape.flop, **forms[shape]} for shape in forms],
        "programs": programs,
    }


def attention_calls(config: ModelConfig, settings: Settings, branches: int) -> Counter[Shape]:
    """Attention calls of one step with fusers, and how often each is made."""
    side, calls = config.unet.sample_size, Counter[Shape]()
    text = config.text_encoder.network.max_length
    for level in config.unet.levels():
        queries = (-(-side // 2**level.depth)) ** 2
        for keys in (queries, queries + settings.max_boxes, text):
            width = level.channels // level.num_heads
            shape = Shape(branches, queries, keys, level.num_heads, width)
            calls[shape] += level.attentions * level.transformer_layers
    return +calls


def _program(chip: str, made: Compiled) -> dict[str, Any]:
    clock = CHIPS[chip].clock
    inside, outside = made.program.cycles()
    parts = inside or outside
    return {
        "compile_s": made.seconds,
        "bytes": {
            "arguments": made.arguments,
            "output": made.output - made.aliased,
            "temporaries": made.temporaries,
            "code": made.code,
            "all": made.bytes,
        },
        "collectives": made.program.collectives(),
        "estimated_ms": {part: 1e3 * n / clock for part, n in parts.most_common()},
    }


def _correct(
    program: dict[str, Any], chip: str, config: ModelConfig, settings: Settings, images: int,
    calls: Counter[Shape], forms: dict[Shape, dict[str, Any]], fusers: bool,
) -> None:  # fmt: skip
    """Adds what a step needs, and its time with static attention cores, to a program's record."""
    from reground_jax.networks.attention import choose_backend

    spent = program["estimated_ms"]
    raw = sum(spent.values())
    cores = 0.0
    for shape, times in calls.items():
        if shape.keys == shape.queries + settings.max_boxes and not fusers:
            continue
        q = (shape.branches, shape.queries, shape.heads, shape.width)
        found = forms[shape][choose_backend("tpu", "bfloat16", q, shape.keys)].get("static_ms")
        if found is None:
            return
        cores += times * found
    corrected = raw - sum(spent.get(part, 0) for part in SCORES) + cores
    side = config.unet.sample_size

    def macs(steps: int, grounded: int) -> int:
        return run_macs(
            config.unet, side, side, num_steps=steps, grounded_steps=grounded,
            guided=settings.guidance_scale != 1, max_boxes=settings.max_boxes,
        )  # fmt: skip

    flop = 2 * images * (macs(1, int(fusers)) - macs(0, 0))
    peak = CHIPS[chip].flops
    program["step"] = {
        "tflop": flop / 1e12,
        "estimated_ms": raw,
        "estimated_share": flop / (raw / 1e3) / peak,
        "corrected_ms": corrected,
        "corrected_share": flop / (corrected / 1e3) / peak,
        "attention_static_ms": cores,
    }


def show(record: dict[str, Any]) -> str:
    settings = record["settings"]
    lines = [
        f"Compiled with libtpu {record['libtpu']}, not run: {record['images_per_chip']} images per "
        f"chip, guidance, {settings['wiring']}, {settings['solver']}, bfloat16.",
        "Figures are laid out (MiB), estimated by the compiler (est.) or counted in its schedule "
        "(static); none is a measurement.",
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
        cells = [row["shape"], f"{1e3 * row['flop'] / CHIPS[chip].flops:.3f}"]
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
    if "step" not in program:
        return []
    step, spent = program["step"], program["estimated_ms"]
    parts = ", ".join(f"{part} {ms:.1f}" for part, ms in spent.items() if ms >= 0.05)
    lines = [
        "",
        f"one of the {name}: {step['tflop']:.2f} TFLOP; est. {step['estimated_ms']:.1f} ms, "
        f"{100 * step['estimated_share']:.1f} % of peak; corrected (attention cores static, "
        f"{step['attention_static_ms']:.1f} ms) {step['corrected_ms']:.1f} ms, "
        f"{100 * step['corrected_share']:.1f} %",
        f"est. ms by part: {parts}",
    ]
    if largest := program.get("largest_batch"):
        lines.append(f"largest batch that fits, extrapolated from two: {largest} images per chip")
    return lines

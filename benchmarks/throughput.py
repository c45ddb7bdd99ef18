"""Images per second of ours and of diffusers' pipeline on one machine, at several batch sizes.

Each side has its own process and its own random weights, so no checkpoint is written; that both
compute the same is `peer`'s business. Both compile and warm up at the same time, then work in
turn. diffusers takes one layout per call, so its batches repeat one; ours have a layout per image.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import Process, replying, requests, say
from benchmarks.sides import gligen_pipeline, gligen_request
from reground_jax.bench.harness import table
from reground_jax.bench.presets import preset_config
from reground_jax.counter import run_macs, step_macs, vae_decoder_macs

STEPS = 20  # denoised in one go to time a step
KINDS = ("sequential", "parallel", "no fusers")
KERNELS = 25  # the slowest ones, which the table lists


@dataclass(frozen=True)
class Options:
    preset: str = "sd14"
    dtype: str = "bfloat16"
    steps: int = 50  # of a whole run
    gamma: float = 0.3  # of one whole run; the other has fusers in all steps
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 3
    compile: bool = False  # torch.compile as a further column, on a GPU

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Options":
        return cls(**value | {"batches": tuple(value["batches"])})


def measure(options: Options) -> dict[str, Any]:
    """Every time of both sides, in turn, and which kernels a step of ours runs."""
    facts = json.dumps(asdict(options))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as open_sides:
        sides = {
            name: open_sides.enter_context(
                Process(name, Path(folder) / f"{name}.log", "benchmarks.throughput", name, facts)
            )
            for name in SIDES
        }
        ready = {name: side.reply() for name, side in sides.items()}
        say("loaded and warm", ready)
        record: dict[str, Any] = {"options": asdict(options), "ready": ready}
        record["peak"] = sides["ours"].ask(what="peak")["flops"]
        record["times"] = times = {str(batch): {} for batch in options.batches}

        def time_one(batch: int, name: str, column: str) -> None:
            found = sides[name].ask(what="times", batch=batch)
            times[str(batch)].setdefault(column, []).append(found)
            say(f"batch {batch}, {column}", found)

        for batch in options.batches:
            for index in range(options.repeats):
                for name in list(sides)[:: 1 if index % 2 else -1]:
                    time_one(batch, name, name)
        record["kernels"] = {
            str(batch): sides["ours"].ask(what="kernels", batch=batch) for batch in options.batches
        }
        if options.compile:
            record["torch.compile"] = sides["theirs"].ask(what="compile")
            for batch in options.batches:
                for _ in range(options.repeats):
                    time_one(batch, "theirs", "theirs, compiled")
    return record


def show(record: dict[str, Any]) -> str:
    """A table of medians: seconds, images per second, and shares of the measured peak."""
    options = Options.from_json(record["options"])
    rows = [["side", "batch", "what", "seconds", "images/s", "TFLOP/s", "% of peak"]]
    for batch, sides in record["times"].items():
        for side, found in sides.items():
            for what in found[0]["seconds"]:
                seconds = statistics.median(one["seconds"][what] for one in found)
                rate = 2 * int(batch) * needed_macs(options, what) / seconds
                made = f"{int(batch) / seconds:.3f}" if what.startswith("run") else ""
                share = f"{100 * rate / record['peak']:.1f}"
                rows.append(
                    [side, batch, what, f"{seconds:.4f}", made, f"{rate / 1e12:.1f}", share]
                )
    lines = [f"peak of a large matrix product: {record['peak'] / 1e12:.0f} TFLOP/s", table(rows)]
    for batch, found in record["kernels"].items():
        if not found["kernels"]:
            continue  # a CPU's trace has none
        lines += [
            "",
            f"batch {batch}, ours, parallel: {found['total']:.2f} ms of kernels in a step",
        ]
        listed = [["kernels", "ms", "calls"]]
        listed += [
            [name, f"{ms:.3f}", f"{calls:g}"] for name, ms, calls in found["kernels"][:KERNELS]
        ]
        lines.append(table(listed))
    return "\n".join(lines)


def needed_macs(options: Options, what: str) -> int:
    """Multiply-accumulates of one image in a "step, KIND" or a "run, gamma G"."""
    config = preset_config(options.preset)
    kind, _, detail = what.partition(", ")
    if kind == "step":
        return step_macs(config.unet, grounded=detail != "no fusers")
    side = config.unet.sample_size
    grounded = int(float(detail.removeprefix("gamma ")) * options.steps)
    return vae_decoder_macs(config.vae, side, side) + run_macs(
        config.unet, side, side, num_steps=options.steps, grounded_steps=grounded
    )


def seconds_of(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class Ours:
    def __init__(self, options: Options):
        import jax

        from reground_jax.bench.cases import Denoising, Work
        from reground_jax.bench.presets import random_model
        from reground_jax.pipeline import Pipeline
        from reground_jax.settings import Settings

        self.options, self.jax = options, jax
        self.pipe = Pipeline.from_model(random_model(options.preset), dtype=options.dtype)
        self.work: dict[tuple[int, str], Any] = {}
        for batch in options.batches:
            for kind in KINDS:
                wiring, gamma = ("parallel", 0.0) if kind == "no fusers" else (kind, 1.0)
                settings = Settings(
                    solver="ddim", wiring=wiring, gamma=gamma, num_steps=options.steps
                )
                self.work[batch, kind] = Denoising.of(self.pipe, Work(settings, batch))
        programs = [
            self.work[batch, kind].program(kind != "no fusers")
            for batch in options.batches
            for kind in KINDS
        ]
        threads = 1 if self.pipe.programs.hardware.on_cpu else len(programs)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda call: call[0].lower(*call[1]).compile(), programs))
        for batch in options.batches:
            self.times(batch)

    def versions(self) -> dict[str, str]:
        return {"jax": self.jax.__version__}

    def peak(self) -> dict[str, Any]:
        from reground_jax.bench.harness import measured_peak

        return {"flops": measured_peak(self.pipe.devices[0], self.options.dtype)}

    def times(self, batch: int) -> dict[str, Any]:
        wait, steps = self.jax.block_until_ready, min(STEPS, self.options.steps)
        seconds = {}
        for kind in KINDS:
            work = self.work[batch, kind]
            state = wait(work.start())
            seconds[f"step, {kind}"] = seconds_of(lambda: wait(work.run(state, 0, steps))) / steps  # noqa: B023
        for gamma in (self.options.gamma, 1.0):
            seconds[f"run, gamma {gamma}"] = seconds_of(lambda: self._run(batch, gamma))  # noqa: B023
        return {"seconds": seconds, "memory": self._memory()}

    def _run(self, batch: int, gamma: float) -> None:
        from reground_jax.bench.presets import layouts

        self.pipe(
            layouts(batch), wiring="parallel", gamma=gamma, solver="ddim", output="numpy",
            num_steps=self.options.steps, batch_size=batch,
        )  # fmt: skip

    def _memory(self) -> int | None:
        from reground_jax.bench.harness import device_memory

        return device_memory(self.pipe.devices[0])

    def kernels(self, batch: int) -> dict[str, Any]:
        """The kernels of one step, the slowest first: (name, milliseconds, calls)."""
        wait, steps = self.jax.block_until_ready, 4
        work = self.work[batch, "parallel"]
        state = wait(work.start())
        with tempfile.TemporaryDirectory() as folder:
            with self.jax.profiler.trace(folder):
                wait(work.run(state, 0, steps))
            (file,) = Path(folder).rglob("*.xplane.pb")
            data = self.jax.profiler.ProfileData.from_file(str(file))
        spent: dict[str, list[float]] = {}
        for plane in data.planes:
            if not plane.name.startswith("/device:"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    entry = spent.setdefault(event.name, [0.0, 0])
                    entry[0] += event.duration_ns / 1e6 / steps
                    entry[1] += 1 / steps
        ranked = sorted(((n, ms, calls) for n, (ms, calls) in spent.items()), key=lambda k: -k[1])
        total = sum(ms for _, ms, _ in ranked)
        return {"total": total, "kernels": ranked}


class Theirs:
    """diffusers' StableDiffusionGLIGENPipeline, channels last, eager until `compile`."""

    def __init__(self, options: Options):
        import diffusers
        import torch
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

        from benchmarks.checkpoints import SCHEDULER, diffusers_configs, write_tokenizer

        diffusers.logging.set_verbosity_error()
        self.options, self.torch = options, torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        config = preset_config(options.preset)
        fields = diffusers_configs(config)
        self.side = config.side
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(Path(folder) / "tokenizer", config)
            tokenizer = CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
        with torch.device(self.device):
            networks = {
                "unet": diffusers.UNet2DConditionModel.from_config(fields["unet"]),
                "vae": diffusers.AutoencoderKL.from_config(fields["vae"]),
                "text_encoder": CLIPTextModel(CLIPTextConfig(**fields["text_encoder"])),
            }
        dtype = getattr(torch, options.dtype)
        self.pipe = gligen_pipeline(
            self.device,
            **{name: network.to(dtype) for name, network in networks.items()},
            tokenizer=tokenizer,
            scheduler=diffusers.DDIMScheduler.from_config(SCHEDULER),
        )
        if self.device == "cuda":
            self.pipe.vae.to(memory_format=torch.channels_last)
        self._warm()

    def versions(self) -> dict[str, str]:
        import diffusers

        return {"torch": self.torch.__version__, "diffusers": diffusers.__version__}

    def _warm(self) -> None:
        for batch in self.options.batches:
            self._run(batch, 0.5, steps=2)

    def compile(self) -> dict[str, Any]:
        """torch.compile of the U-Net, which takes two programs, and of the VAE's decoder."""
        self.pipe.unet.compile()
        self.pipe.vae.decoder.compile()
        return {"seconds": seconds_of(self._warm)}

    def times(self, batch: int) -> dict[str, Any]:
        seconds = {}
        for kind, gamma in (("sequential", 1.0), ("no fusers", 0.0)):
            ends = self._run(batch, gamma, steps=STEPS + 1, latent=True)
            seconds[f"step, {kind}"] = (ends[-1] - ends[0]) / (len(ends) - 1)
        for gamma in (self.options.gamma, 1.0):
            seconds[f"run, gamma {gamma}"] = seconds_of(lambda: self._run(batch, gamma))  # noqa: B023
        return {"seconds": seconds, "memory": self._memory()}

    def _memory(self) -> int | None:
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def _run(
        self, batch: int, gamma: float, *, steps: int | None = None, latent: bool = False
    ) -> list[float]:
        """Returns the times at which steps ended; waits for the device at the outer ones only."""
        from reground_jax.bench.presets import layouts

        (layout,) = layouts(1)
        steps, ends = steps or self.options.steps, []
        seen = 0

        def note(*_: Any) -> None:
            nonlocal seen
            seen += 1
            if self.device == "cuda" and seen in (1, steps):
                self.torch.cuda.synchronize()
            ends.append(time.perf_counter())

        self.pipe(
            **gligen_request(layout, gamma, steps, self.side), num_images_per_prompt=batch,
            output_type="latent" if latent else "np", callback=note,
        )  # fmt: skip
        return ends


SIDES = {"ours": Ours, "theirs": Theirs}


def work(name: str, options: Options) -> None:
    """Answers requests on stdin, one JSON value per line."""
    reply, begin = replying(), time.perf_counter()
    side = SIDES[name](options)
    reply(seconds=time.perf_counter() - begin, versions=side.versions())
    for request in requests():
        reply(**getattr(side, request.pop("what"))(**request))


if __name__ == "__main__":
    work(sys.argv[1], Options.from_json(json.loads(sys.argv[2])))

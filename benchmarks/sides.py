"""The two sides of a comparison, each a process that answers one request at a time.

    python -m benchmarks.sides ours|theirs FOLDER OPTIONS      OPTIONS: JSON

{"peak": true} asks for the FLOP/s of a matrix product, at this moment. Both sample with DDIM from
the same noise, for the layout of `presets.layouts`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.processes import replying, requests
from reground_jax.bench.harness import GIB, peak_memory
from reground_jax.bench.presets import layouts, preset_config
from reground_jax.config import ModelConfig
from reground_jax.layout import Layout

GUIDANCE_SCALE = 7.5


class Side(Protocol):
    versions: dict[str, str]

    def run(self, gamma: float, *, wiring: str, image: bool) -> tuple[np.ndarray, list[float]]:
        """Latents [1,h,w,C] or, with `image`, an image [1,H,W,3] in 0..1; and steps' end times."""
        ...

    def memory(self) -> int:
        """Peak memory in bytes: of the device if there is one, else of the process."""
        ...


def start_noise(config: ModelConfig) -> np.ndarray:
    side = config.unet.sample_size
    shape = (1, side, side, config.vae.latent_channels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


class Ours:
    def __init__(self, folder: Path, options: dict[str, Any]):
        import jax
        import jax.numpy as jnp

        from reground_jax.bench.cases import Denoising, Work
        from reground_jax.pipeline import Pipeline
        from reground_jax.settings import Settings

        self.pipe = Pipeline.load(folder / "ours", dtype=options["dtype"])
        self.steps = options["steps"]
        self.versions = {"jax": jax.__version__}
        latents = jnp.asarray(start_noise(self.pipe.config))
        for wiring in options["wirings"]:
            settings = Settings(solver="ddim", num_steps=self.steps, wiring=wiring)
            denoising = Denoising.of(self.pipe, Work(settings))
            denoising.compile()
            plan, seeds = denoising.inputs.plan, np.zeros(1, np.uint32)
            self.pipe.programs.start(plan, settings, seeds, latents=latents)
        self.pipe.decode(latents).block_until_ready()

    def run(self, gamma: float, *, wiring: str, image: bool) -> tuple[np.ndarray, list[float]]:
        ends: list[float] = []
        made = self.pipe(
            layouts(1), wiring=wiring, gamma=gamma, solver="ddim", num_steps=self.steps,
            guidance_scale=GUIDANCE_SCALE, latents=start_noise(self.pipe.config),
            output="numpy" if image else "latents",
            progress=None if image else lambda *_: ends.append(time.perf_counter()),
        )  # fmt: skip
        return made, ends

    def memory(self) -> int:
        from reground_jax.bench.harness import device_memory

        return device_memory(self.pipe.devices[0]) or peak_memory()


class Theirs:
    """diffusers' StableDiffusionGLIGENPipeline: eager, or compiled on a GPU on request."""

    def __init__(self, folder: Path, options: dict[str, Any]):
        import diffusers
        import torch
        from transformers import CLIPTextModel, CLIPTokenizer

        diffusers.logging.set_verbosity_error()
        source, self.torch, self.steps = folder / "diffusers", torch, options["steps"]
        self.config = preset_config(options["preset"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        kind: dict[str, Any] = {"torch_dtype": getattr(torch, options["dtype"])}
        text = CLIPTextModel.from_pretrained(source / "text_encoder", **kind)
        scheduler = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
        self.pipe = gligen_pipeline(
            self.device,
            unet=diffusers.UNet2DConditionModel.from_pretrained(source / "unet", **kind),
            vae=diffusers.AutoencoderKL.from_pretrained(source / "vae", **kind),
            text_encoder=text,
            tokenizer=CLIPTokenizer.from_pretrained(source / "tokenizer"),
            scheduler=diffusers.DDIMScheduler.from_config(scheduler),
        )
        if self.device == "cuda" and options["compile"]:
            self.pipe.unet = torch.compile(self.pipe.unet)
        self.versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        # Two steps, with and without fusers, warm up eager mode and both programs of torch.compile.
        self.run(0.5, wiring="sequential", image=True, steps=2)

    def run(
        self, gamma: float, *, wiring: str, image: bool, steps: int | None = None
    ) -> tuple[np.ndarray, list[float]]:
        assert wiring == "sequential"  # the only wiring that diffusers has
        (layout,) = layouts(1)
        ends: list[float] = []
        noise = start_noise(self.config).transpose(0, 3, 1, 2)

        def note(*_: Any) -> None:
            if self.device == "cuda":
                self.torch.cuda.synchronize()
            ends.append(time.perf_counter())

        made = self.pipe(
            **gligen_request(layout, gamma, steps or self.steps, self.config.side),
            latents=self.torch.tensor(noise).to(self.device, self.pipe.unet.dtype),
            output_type="np" if image else "latent",
            callback=None if image else note,
        ).images
        if image:
            return np.asarray(made), ends
        return made.float().cpu().numpy().transpose(0, 2, 3, 1), ends

    def memory(self) -> int:
        if self.device == "cuda":
            return self.torch.cuda.max_memory_allocated()
        return peak_memory()


def gligen_pipeline(device: str, **parts: Any) -> Any:
    """diffusers' pipeline of networks, tokenizer and scheduler, on a device and without checks."""
    import diffusers
    import torch

    pipe = diffusers.StableDiffusionGLIGENPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    if device == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)
    return pipe


def gligen_request(layout: Layout, gamma: float, steps: int, side: int) -> dict[str, Any]:
    """Our request as diffusers' pipeline takes it."""
    return {
        "prompt": layout.prompt,
        "negative_prompt": layout.negative_prompt,
        "gligen_phrases": list(layout.phrases),
        "gligen_boxes": [list(box) for box in layout.boxes],
        "gligen_scheduled_sampling_beta": gamma,
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE_SCALE,
        "height": side,
        "width": side,
    }


def peak(dtype: str) -> float:
    """FLOP/s of a large matrix product in JAX: one figure for both sides."""
    import jax

    from reground_jax.bench.harness import measured_peak

    return measured_peak(jax.local_devices()[0], dtype)


def convert(folder: Path, _: dict[str, Any]) -> dict[str, Any]:
    from reground_jax.convert.conversion import convert

    info = convert(folder / "diffusers", folder / "ours")
    return {"unet_parameters": info["parameters"]["unet"], "dtype": info["dtype"]}


def write(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.checkpoints import write_checkpoint

    write_checkpoint(folder / "diffusers", options["preset"])
    files = (folder / "diffusers").rglob("*.safetensors")
    return {"gib": sum(file.stat().st_size for file in files) / GIB}


SIDES = {"ours": Ours, "theirs": Theirs}
STAGES = {"write": write, "convert": convert}


def main(name: str, folder: Path, options: dict[str, Any]) -> None:
    reply, begin = replying(), time.perf_counter()
    if name in STAGES:
        facts = STAGES[name](folder, options)
        reply(seconds=time.perf_counter() - begin, peak_memory=peak_memory(), **facts)
        return
    side: Side = SIDES[name](folder, options)
    reply(seconds=time.perf_counter() - begin, versions=side.versions)
    for request in requests():
        if "peak" in request:
            reply(flops=peak(options["dtype"]))
            continue
        file = request.pop("file")
        begin = time.perf_counter()
        made, ends = side.run(**request)
        seconds = time.perf_counter() - begin
        np.save(file, made)
        steps = np.diff(ends).tolist()
        reply(seconds=seconds, steps=steps, peak_memory=side.memory())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))

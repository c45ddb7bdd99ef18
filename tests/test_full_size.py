"""Proof 5: a random GLIGEN of SD1.4's size, from fp16 diffusers folder to latents, by hand.

    pytest -m slow -s tests/test_full_size.py      (about 10 minutes on 2 cores, 12 GB of memory)

Each stage is a process of its own and reports its time and its peak memory (resident set).
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.reference import relative_error

ROOT = Path(__file__).parent.parent

HEAD = """
import json, sys, time
from pathlib import Path
import numpy as np
folder = Path(sys.argv[1])
begin = time.perf_counter()
def report(**facts):
    # Not ru_maxrss, which starts at the peak of the process that started this one.
    (line,) = (l for l in open("/proc/self/status") if l.startswith("VmHWM"))
    peak = int(line.split()[1]) / 2**20
    print(json.dumps({"seconds": time.perf_counter() - begin, "peak_gib": peak, **facts}))
LAYOUT = dict(prompt="a cat and a dog", phrases=["a cat", "a dog"],
              boxes=[(0.05, 0.2, 0.45, 0.9), (0.55, 0.3, 0.95, 0.9)], negative_prompt="dark")
SETTINGS = dict(num_steps=2, guidance_scale=7.5)
X = np.random.default_rng(0).standard_normal((1, 64, 64, 4)).astype(np.float32)
"""

STAGES = {
    "write": """
import torch
from tests import reference as R
from transformers import CLIPTextConfig, CLIPTextModel
from diffusers import AutoencoderKL, UNet2DConditionModel
def save(part, model):
    R.randomise(model).half().save_pretrained(folder / "diffusers" / part)
save("unet", UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_type="gated"))
# The published size; the other parts are tiny, as only the U-Net's size matters here.
save("vae", AutoencoderKL(**R.VAE))
text = R.TEXT | dict(hidden_size=768, num_attention_heads=12)
save("text_encoder", CLIPTextModel(CLIPTextConfig(**text)))
R.write_tokenizer(folder / "diffusers" / "tokenizer")
scheduler = folder / "diffusers" / "scheduler"
scheduler.mkdir()
(scheduler / "scheduler_config.json").write_text(json.dumps(R.SD14_SCHEDULER))
size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
report(gib=size / 2**30)
""",
    "convert": """
from reground_jax.convert.convert import convert
info = convert(folder / "diffusers", folder / "ours")
report(parameters=info["parameters"]["unet"], dtype=info["dtype"])
""",
    "ours": """
import jax
from reground_jax import Layout, Pipeline
from reground_jax.model import count_parameters
pipe = Pipeline.load(folder / "ours")
loaded = time.perf_counter() - begin
def run(wiring):
    start = time.perf_counter()
    latents = pipe(Layout(**LAYOUT), wiring=wiring, gamma=1.0, solver="ddim", latents=X,
                   output="latents", **SETTINGS)
    return time.perf_counter() - start, latents
first, latents = run("sequential")
second, again = run("sequential")
assert (latents == again).all()
run("parallel")
parallel, other = run("parallel")
assert np.abs(latents - other).max() > 1e-3
np.save(folder / "ours.npy", latents)
parameters = count_parameters(pipe.params["unet"])
report(unet_parameters=parameters, load=loaded, first=first, second=second,
       parallel=parallel)
""",
    "theirs": """
import diffusers, torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers import StableDiffusionGLIGENPipeline
from tests import reference as R
from transformers import CLIPTextModel
source = folder / "diffusers"
kind = dict(torch_dtype=torch.float32)
pipe = StableDiffusionGLIGENPipeline(
    unet=UNet2DConditionModel.from_pretrained(source / "unet", **kind),
    vae=AutoencoderKL.from_pretrained(source / "vae", **kind),
    text_encoder=CLIPTextModel.from_pretrained(source / "text_encoder").float(),
    tokenizer=R.write_tokenizer(folder / "again"),
    scheduler=DDIMScheduler.from_config(R.SD14_SCHEDULER),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)
loaded = time.perf_counter() - begin
start = time.perf_counter()
latents = pipe(
    prompt=LAYOUT["prompt"], negative_prompt=LAYOUT["negative_prompt"],
    gligen_phrases=LAYOUT["phrases"], gligen_boxes=[list(b) for b in LAYOUT["boxes"]],
    gligen_scheduled_sampling_beta=1.0, num_inference_steps=SETTINGS["num_steps"],
    guidance_scale=SETTINGS["guidance_scale"], latents=torch.tensor(X.transpose(0, 3, 1, 2)),
    height=512, width=512, output_type="latent",
).images
np.save(folder / "theirs.npy", R.nhwc(latents))
report(load=loaded, run=time.perf_counter() - start)
""",
}


def run_stage(name: str, folder: Path) -> dict:
    result = subprocess.run(
        [sys.executable, "-c", HEAD + STAGES[name], str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{name}: {result.stderr[-3000:]}"
    facts = json.loads(result.stdout.splitlines()[-1])
    print(
        f"\n{name:8}",
        json.dumps({key: round(v, 2) if isinstance(v, float) else v for key, v in facts.items()}),
    )
    return facts


@pytest.mark.slow
def test_a_full_size_model_gives_diffusers_latents(tmp_path):
    reports = {name: run_stage(name, tmp_path) for name in STAGES}
    assert round(reports["ours"]["unet_parameters"] / 1e6, 2) == 1068.62
    assert reports["convert"]["dtype"] == "float16"  # the source's
    error = relative_error(np.load(tmp_path / "ours.npy"), np.load(tmp_path / "theirs.npy"))
    print(f"largest relative error of the latents: {error:.2e}")
    assert error < 1e-4

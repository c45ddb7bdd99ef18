"""Proof 6: many devices give the same images as one, without collectives; it lowers for TPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from reground_jax.conditioning import Conditioning
from reground_jax.config import ModelConfig
from reground_jax.model import network
from reground_jax.networks.attention import attention_for
from reground_jax.networks.grounding.text import Grounding
from reground_jax.sampling.loop import Inputs, Program, advance, prepare
from reground_jax.sampling.solvers import SOLVERS
from tests.processes import with_devices

ROOT = Path(__file__).parent.parent
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")

EIGHT_DEVICES = """
import json, sys
import jax, numpy as np
from reground_jax import LayoutGuidance, Layout, Pipeline, Settings
from reground_jax.bench.cases import Denoising, Work
from tests.models import ONE_LEVEL, tiny_model

COLLECTIVES = json.loads(sys.argv[1])
assert jax.device_count() == 8
layouts = [Layout(f"cat {i}", ["a cat"], [(0.1, 0.1, 0.2 + i / 20, 0.9)]) for i in range(11)]
settings = dict(num_steps=3, gamma=0.4, solver="ddim", eta=0.5, seeds=range(20, 31), batch_size=2)
model = tiny_model(**({} if sys.argv[2] == "guided" else ONE_LEVEL))
one = Pipeline.from_model(model, devices=jax.devices()[:1])
many = {mapper: Pipeline.from_model(model, mapper=mapper) for mapper in ("shard_map", "pmap")}
images, differences = {}, {}
# Samples stop after different numbers of updates, so devices run their loops for different times.
guidance = LayoutGuidance(strength=3000, until=1, threshold=0.5)
settings["attention_guidance"] = guidance if sys.argv[2] == "guided" else None
for wiring in ("sequential", "parallel"):
    settings["wiring"] = wiring
    images[wiring] = one(layouts, output="numpy", **settings)
    for mapper, pipe in many.items():
        others = pipe(layouts, output="numpy", **settings)
        differences[f"{wiring}, {mapper}"] = float(np.abs(images[wiring] - others).max())
chosen = Settings(num_steps=3, solver="ddim", eta=0.5, attention_guidance=guidance)
program, args = Denoising.of(many["shard_map"], Work(chosen, batch=8)).program()
hlo = program.lower(*args).compile().as_text()
print(json.dumps({
    "differences": differences,
    "between images": float(np.abs(images["parallel"][1:] - images["parallel"][:-1]).max()),
    "between wirings": float(np.abs(images["parallel"] - images["sequential"]).max()),
    "collectives": [name for name in COLLECTIVES if name in hlo],
    "partitions": "num_partitions=8" in hlo,
}))
"""


@pytest.mark.parametrize("guided", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_eight_devices_give_the_same_images_as_one_and_no_collective(guided):
    """The program that is searched for collectives always has attention guidance."""
    result = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:reground_jax", "-c", EIGHT_DEVICES]
        + [json.dumps(COLLECTIVES), "guided" if guided else ""],
        env={**os.environ, "XLA_FLAGS": with_devices(8), "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["between images"] > 0.1  # the images are not all the same
    assert report["between wirings"] > 0.01
    # The same per-device program on the same rows: the same bits, but for sums of gradients.
    assert len(report["differences"]) == 4
    assert max(report["differences"].values()) <= (1e-5 if guided else 0)
    assert report["partitions"] and report["collectives"] == []


@pytest.mark.parametrize("backend", [None, "pallas"])
def test_the_full_size_sampling_program_lowers_for_tpu(backend):
    """SD1.x size in bfloat16, from shapes alone: no array is made."""
    graph, params = network(ModelConfig(), "unet")
    solver = SOLVERS["plms"]
    plan = solver.plan(ModelConfig().schedule, 50)
    attend = attention_for("tpu", backend)

    def sample(params, conditioning, x, seeds, gates, scale, bounds):
        prepared = prepare(
            graph, params, conditioning, plan.timesteps,
            wiring="parallel", guided=True, dtype=jnp.dtype("bfloat16"),
        )  # fmt: skip
        inputs = Inputs(jax.tree.map(jnp.asarray, plan), gates, scale, seeds)
        program = Program(graph, "parallel", solver, attend)
        with jax.default_matmul_precision("highest"):
            state = solver.init(x, plan)
            return advance(program, params, state, prepared, inputs, *bounds).x

    def shape(*dims, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dims, dtype)

    half = jax.tree.map(lambda leaf: shape(*leaf.shape, dtype=jnp.bfloat16), params)
    grounding = Grounding(shape(2, 30, 4), shape(2, 30, 768), shape(2, 30))
    conditioning = Conditioning(shape(2, 77, 768), shape(2, 77, 768), grounding)
    scalar = shape(dtype=jnp.int32)
    traced = jax.jit(sample).trace(
        half, conditioning, shape(2, 64, 64, 4), shape(2, dtype=jnp.uint32), shape(50), shape(),
        (scalar,) * 2,
    )  # fmt: skip
    assert traced.out_info.shape == (2, 64, 64, 4)
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text()
    # Pallas kernels are custom calls of their own.
    assert ("tpu_custom_call" in lowered) == (backend == "pallas")

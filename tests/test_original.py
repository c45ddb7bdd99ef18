"""Proof 2: every array that the original GLIGEN code computed from its own tiny checkpoints."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.conditioning import Conditioning
from reground_jax.convert.conversion import convert
from reground_jax.devices import compiler_options
from reground_jax.model import network, read_model
from reground_jax.networks.attention import attention_for
from reground_jax.networks.grounding.text import Grounding
from reground_jax.networks.transformer import reads_grounding
from reground_jax.sampling.gate import gate_table, grounded_steps
from reground_jax.sampling.loop import Inpaint, Inputs, Program, advance, prepare
from reground_jax.sampling.solvers import SOLVERS
from tests.models import module
from tests.originals import write_tiny_tokenizer
from tests.reference import DATA, relative_error

ATTEND = attention_for("cpu")
# On plms10 the wirings differ by 1.5e-3 of the largest value, one grounded step fewer by 5e-4, a
# gate of .5 instead of 1 by 3e-4; on eps, a tanh GELU by 5e-5. Our rounding stays under 3e-6.
TOLERANCE = 2e-5
NAMES = ("text_box", "inpaint")
WIRINGS = ("sequential", "parallel")


@functools.cache
def fixture(name: str):
    """(model, arrays by name, NHWC where they are images)."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="reground-original-"))
    tokenizer = write_tiny_tokenizer(folder / "tokenizer")
    source = DATA / "original" / f"original_{name}_tiny.bin"
    convert(source, folder / "model", tokenizer=tokenizer)
    with np.load(source.with_suffix(".npz")) as file:
        arrays = {
            key: np.moveaxis(file[key], -3, -1) if file[key].ndim >= 4 else file[key]
            for key in file
        }
    return read_model(folder / "model"), arrays


def grounding(arrays, mask=None) -> Grounding:
    mask = arrays["masks"] if mask is None else mask
    return Grounding(*map(jnp.asarray, (arrays["boxes"], arrays["phrase_embeddings"], mask)))


@pytest.mark.parametrize("name", NAMES)
def test_the_text_encoder_equals_the_original(name):
    model, arrays = fixture(name)
    encoder = module(model, "text_encoder")
    encoding = encoder(jnp.asarray(arrays["input_ids"], jnp.int32))
    empty = encoder(jnp.asarray(arrays["uncond_input_ids"], jnp.int32))
    assert relative_error(encoding.hidden, arrays["context"]) < TOLERANCE
    assert relative_error(encoding.pooled, arrays["pooler_output"]) < TOLERANCE
    assert relative_error(empty.hidden, arrays["uncond_context"]) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_the_autoencoder_equals_the_original(name):
    model, arrays = fixture(name)
    vae = module(model, "vae")
    latents = vae.encode(jnp.asarray(arrays["image"]), attend=ATTEND)
    decoded = vae.decode(jnp.asarray(arrays["x"]), attend=ATTEND)
    assert relative_error(latents, arrays["latent_mean"]) < TOLERANCE
    assert relative_error(decoded, arrays["decoded"]) < TOLERANCE


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("name", NAMES)
def test_the_unet_equals_the_original(name, wiring):
    model, arrays = fixture(name)
    unet, x = module(model, "unet"), jnp.asarray(arrays["x"])
    if name == "inpaint":  # 4 noisy + 4 masked + 1 mask
        mask = jnp.asarray(arrays["inpaint_mask"])
        x = jnp.concatenate([x, arrays["latent_mean"] * mask, mask], axis=-1)
    null = grounding(arrays, np.zeros_like(arrays["masks"]))
    for key, text, tokens in (
        (f"eps_{wiring}", "context", grounding(arrays)),
        (f"eps_null_{wiring}", "uncond_context", null),
    ):
        timesteps = jnp.asarray(arrays["t"], jnp.float32)
        prepared = unet.prepare(jnp.asarray(arrays[text]), tokens, timesteps, wiring=wiring)
        eps = unet(x, prepared, gate=jnp.float32(1), wiring=wiring, attend=ATTEND)
        assert relative_error(eps, arrays[key]) < TOLERANCE


def sample(name: str, wiring: str, *, lost_steps: int = 0) -> np.ndarray:
    """10 PLMS steps at guidance 5 with the fixture's gate schedule."""
    model, arrays = fixture(name)
    graph, _ = network(model.config, "unet")
    solver = SOLVERS["plms"]
    plan = solver.plan(model.config.schedule, 10)
    inpaint = None
    if name == "inpaint":
        noise = np.moveaxis(arrays["inpaint_noise"], 0, 1)  # a step's noise, per sample
        inpaint = Inpaint(*map(jnp.asarray, (arrays["latent_mean"], arrays["inpaint_mask"], noise)))
    conditioning = Conditioning(
        jnp.asarray(arrays["context"]), jnp.asarray(arrays["uncond_context"]), grounding(arrays)
    )
    prepared = prepare(
        graph,
        model.params["unet"],
        conditioning,
        plan.timesteps,
        wiring=wiring,
        guided=True,
        dtype=jnp.dtype("float32"),
    )
    gates = gate_table(tuple(float(part) for part in arrays["gamma"]), 10)
    seeds = np.zeros(2, np.uint32)  # PLMS draws no noise
    inputs = Inputs(plan, jnp.asarray(gates), jnp.float32(5), jnp.asarray(seeds), inpaint)
    state = solver.init(jnp.asarray(arrays["x"]), plan)
    switch = grounded_steps(gates) - lost_steps if reads_grounding(wiring) else 0
    for grounded, start, stop in ((True, 0, switch), (False, switch, 10)):
        run = jax.jit(
            functools.partial(advance, Program(graph, wiring, solver, ATTEND, grounded)),
            compiler_options=compiler_options(jax.devices()),
        )
        state = run(model.params["unet"], state, prepared, inputs, np.int32(start), np.int32(stop))
    return state.x


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("name", NAMES)
def test_ten_plms_steps_equal_the_original(name, wiring):
    _, arrays = fixture(name)
    assert relative_error(sample(name, wiring), arrays[f"plms10_g5_{wiring}"]) < TOLERANCE


def test_one_grounded_step_fewer_would_be_noticed():
    _, arrays = fixture("inpaint")
    lost = sample("inpaint", "sequential", lost_steps=1)
    assert relative_error(lost, arrays["plms10_g5_sequential"]) > 5 * TOLERANCE

"""Proof 2: every array that the original GLIGEN code computed from its own tiny checkpoints."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.conditioning import Conditioning
from reground_jax.devices import compiler_options
from reground_jax.kinds import MAP_KINDS
from reground_jax.model import network, read_model
from reground_jax.networks.attention import attention_for
from reground_jax.networks.grounding import keypoint, maps, text_image
from reground_jax.networks.grounding.text import Grounding as TextGrounding
from reground_jax.networks.transformer import reads_grounding
from reground_jax.sampling.gate import gate_table, grounded_steps
from reground_jax.sampling.loop import Inpaint, Inputs, Program, advance, prepare
from reground_jax.sampling.solvers import SOLVERS
from tests import kinds
from tests.fixtures import DATA, fixtures
from tests.kinds import ALL
from tests.models import module
from tests.reference import relative_error

ATTEND = attention_for("cpu")
# On plms the wirings differ by 1.5e-3 of the largest value, one grounded step fewer by 5e-4, a gate
# of .5 instead of 1 by 3e-4; on eps, a tanh GELU by 5e-5, a ConvNeXt's LayerNorm with eps 1e-5 by
# 3e-5. Our rounding stays under 3e-6.
TOLERANCE = 1e-5
PLMS_TOLERANCE = 2e-5
WIRINGS = ("sequential", "parallel")


def source(name: str) -> Path:
    return kinds.source(name, fixtures())


NAMES = [name for name in ALL if source(name).exists()]
MAPPED = [name for name in NAMES if name in MAP_KINDS]


@functools.cache
def arrays_of(name: str) -> dict[str, np.ndarray]:
    """The arrays of a fixture, NHWC where they are images in floats."""
    with np.load(source(name).with_suffix(".npz")) as file:
        arrays = dict(file)
    images = [k for k, v in arrays.items() if v.ndim >= 4 and v.dtype != np.uint8]
    return arrays | {k: np.moveaxis(arrays[k], -3, -1) for k in images if k != "sd_conv_weight"}


@functools.cache
def fixture(name: str):
    """(converted model, arrays)."""
    return read_model(kinds.converted(name, fixtures())), arrays_of(name)


def with_array(key: str) -> list[str]:
    """The fixtures that have an array."""
    return [name for name in NAMES if key in arrays_of(name)]


def grounding(name: str):
    """What the fixture grounds on, as its kind has it."""
    a = {key: jnp.asarray(value) for key, value in arrays_of(name).items()}
    if name in MAP_KINDS:
        pixels = a["sem_index" if name == "sem" else "map_uint8"]
        return maps.Grounding(pixels, jnp.ones(len(pixels)))
    if name == "keypoint":
        return keypoint.Grounding(a["points"], a["masks"])
    if name.startswith("text_image"):
        phrases, images = a["text_embeddings"], a["image_embeddings"]
        weights = a["text_masks"], a["image_masks"]
        return text_image.Grounding(a["boxes"], a["masks"], phrases, weights[0], images, weights[1])
    return TextGrounding(a["boxes"], a["phrase_embeddings"], a["masks"])


def known_part(name: str) -> Inpaint | None:
    arrays = arrays_of(name)
    if "inpaint_mask" not in arrays:
        return None
    noise = np.moveaxis(arrays["inpaint_noise"], 0, 1)  # a step's noise, per sample
    return Inpaint(*map(jnp.asarray, (arrays["latent_mean"], arrays["inpaint_mask"], noise)))


def unet_input(name: str):
    x, known = jnp.asarray(arrays_of(name)["x"]), known_part(name)
    if known is None:
        return x  # else 4 noisy + 4 masked + 1 mask
    return jnp.concatenate([x, known.latents * known.mask, known.mask], axis=-1)


def latent_size(name: str) -> tuple[int, int]:
    return arrays_of(name)["x"].shape[1:3]


def test_there_are_fixtures():
    assert NAMES
    if fixtures() == DATA:
        assert tuple(NAMES) == ALL


@pytest.mark.parametrize("name", NAMES)
def test_the_text_encoder_equals_the_original(name):
    model, arrays = fixture(name)
    encoder = module(model, "text_encoder")
    encoding = encoder(jnp.asarray(arrays["input_ids"], jnp.int32))
    empty = encoder(jnp.asarray(arrays["uncond_input_ids"], jnp.int32))
    assert relative_error(encoding.hidden, arrays["context"]) < TOLERANCE
    assert relative_error(encoding.pooled, arrays["pooler_output"]) < TOLERANCE
    assert relative_error(empty.hidden, arrays["uncond_context"]) < TOLERANCE


@pytest.mark.parametrize("name", with_array("latent_mean"))
def test_the_autoencoder_equals_the_original(name):
    model, arrays = fixture(name)
    vae = module(model, "vae")
    latents = vae.encode(jnp.asarray(arrays["image"]), attend=ATTEND)
    assert relative_error(latents, arrays["latent_mean"]) < TOLERANCE
    if "decoded" in arrays:
        decoded = vae.decode(jnp.asarray(arrays["x"]), attend=ATTEND)
        assert relative_error(decoded, arrays["decoded"]) < TOLERANCE


@pytest.mark.parametrize("name", with_array("grounding_tokens"))
def test_the_grounding_tokens_equal_the_original(name):
    model, arrays = fixture(name)
    net, given = module(model, "unet").position_net, grounding(name)
    tokens = net(given, dtype=jnp.float32)
    null = net.null_tokens(given, dtype=jnp.float32)
    assert relative_error(tokens, arrays["grounding_tokens"]) < TOLERANCE
    assert relative_error(null, arrays["grounding_tokens_null"]) < TOLERANCE
    assert relative_error(net(given.null(), dtype=jnp.float32), null) < TOLERANCE


@pytest.mark.parametrize("name", MAPPED)
def test_what_a_map_appends_equals_the_original(name):
    model, arrays = fixture(name)
    unet, given = module(model, "unet"), grounding(name)
    appended = unet.downsample_net(given, latent_size(name), dtype=jnp.float32)
    assert relative_error(appended, arrays["downsampled"]) < TOLERANCE


@pytest.mark.parametrize("name", MAPPED)
def test_the_features_of_a_map_equal_the_original(name):
    model, arrays = fixture(name)
    net, given = module(model, "unet").position_net, grounding(name)
    assert relative_error(net.features(given.map, jnp.float32), arrays["backbone_features"]) < (
        TOLERANCE
    )


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("name", NAMES)
def test_the_unet_equals_the_original(name, wiring):
    model, arrays = fixture(name)
    unet, given = module(model, "unet"), grounding(name)
    net, timesteps = unet.position_net, jnp.asarray(arrays["t"], jnp.float32)
    appended = None
    if unet.downsample_net is not None:
        appended = unet.downsample_net(given, latent_size(name), dtype=jnp.float32)
    tokens, null = net(given, dtype=jnp.float32), net.null_tokens(given, dtype=jnp.float32)
    one = jnp.float32(1)
    calls = [
        (f"eps_{wiring}", "context", tokens, one),
        (f"eps_null_{wiring}", "uncond_context", null, one),
        ("eps_gate0", "context", tokens, jnp.float32(0)),
        ("eps_restored", "context", tokens, None),
    ]
    for key, context, own, gate in calls:
        if key not in arrays:
            continue
        prepared = unet.prepare(
            jnp.asarray(arrays[context]), own, timesteps, wiring=wiring, appended=appended
        )
        eps = unet(unet_input(name), prepared, gate=gate, wiring=wiring, attend=ATTEND)
        assert relative_error(eps, arrays[key]) < TOLERANCE, key


def conditioning_of(name: str) -> Conditioning:
    arrays = arrays_of(name)
    texts = jnp.asarray(arrays["context"]), jnp.asarray(arrays["uncond_context"])
    return Conditioning(*texts, grounding(name))


def plms_key(name: str, wiring: str) -> tuple[str, int, float]:
    """The array of a whole run, its number of steps and its guidance scale."""
    for key in arrays_of(name):
        if found := re.fullmatch(rf"plms(\d+)_g([\d.]+)_{wiring}", key):
            return key, int(found[1]), float(found[2])
    raise AssertionError(f"original_{name}_tiny.npz has no plms run under {wiring}")


def sample(name: str, wiring: str, *, lost_steps: int = 0) -> np.ndarray:
    """PLMS steps with the fixture's guidance and gate schedule."""
    model, arrays = fixture(name)
    _, steps, scale = plms_key(name, wiring)
    graph, _ = network(model.config, "unet")
    solver = SOLVERS["plms"]
    plan = solver.plan(model.config.schedule, steps)
    prepared = prepare(
        graph, model.params["unet"], conditioning_of(name), plan.timesteps, wiring=wiring,
        guided=True, dtype=jnp.dtype("float32"), downsampling=model.config.vae.downsampling,
    )  # fmt: skip
    gates = gate_table(tuple(float(part) for part in arrays["gamma"]), steps)
    seeds = np.zeros(len(arrays["x"]), np.uint32)  # PLMS draws no noise
    inputs = Inputs(
        plan, jnp.asarray(gates), jnp.float32(scale), jnp.asarray(seeds), known_part(name)
    )
    state = solver.init(jnp.asarray(arrays["x"]), plan)
    switch = grounded_steps(gates) - lost_steps if reads_grounding(wiring) else 0
    for grounded, start, stop in ((True, 0, switch), (False, switch, steps)):
        run = jax.jit(
            functools.partial(advance, Program(graph, wiring, solver, ATTEND, grounded)),
            compiler_options=compiler_options(jax.devices()),
        )
        own = prepared.for_steps(grounded)
        state = run(model.params["unet"], state, own, inputs, np.int32(start), np.int32(stop))
    return state.x


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("name", NAMES)
def test_a_plms_run_equals_the_original(name, wiring):
    key, *_ = plms_key(name, wiring)
    assert relative_error(sample(name, wiring), arrays_of(name)[key]) < PLMS_TOLERANCE


# Mistakes that are easy to make, each of which a fixture must notice.


def one_of(*names: str) -> str:
    found = [name for name in names if name in NAMES]
    return found[0] if found else pytest.skip(f"none of the fixtures {', '.join(names)}")


def test_one_grounded_step_fewer_would_be_noticed():
    name = one_of("inpaint", "canny")
    key, *_ = plms_key(name, "sequential")
    lost = sample(name, "sequential", lost_steps=1)
    assert relative_error(lost, arrays_of(name)[key]) > 5 * PLMS_TOLERANCE


@pytest.mark.parametrize("name", MAPPED)
def test_a_first_convolution_that_is_not_restored_would_be_noticed(name):
    key, steps, _ = plms_key(name, "parallel")
    gates = gate_table(tuple(float(part) for part in arrays_of(name)["gamma"]), steps)
    kept = sample(name, "parallel", lost_steps=grounded_steps(gates) - steps)
    assert relative_error(kept, arrays_of(name)[key]) > 50 * PLMS_TOLERANCE


@pytest.mark.parametrize("name", MAPPED)
def test_a_map_that_only_the_conditional_branch_reads_would_be_noticed(name):
    model, arrays = fixture(name)
    unet, given = module(model, "unet"), grounding(name)
    appended = unet.downsample_net(given, latent_size(name), dtype=jnp.float32)
    null = unet.position_net.null_tokens(given, dtype=jnp.float32)
    text, timesteps = jnp.asarray(arrays["uncond_context"]), jnp.asarray(arrays["t"], jnp.float32)
    prepared = unet.prepare(text, null, timesteps, wiring="parallel", appended=0 * appended)
    eps = unet(unet_input(name), prepared, gate=jnp.float32(1), wiring="parallel", attend=ATTEND)
    assert relative_error(eps, arrays["eps_null_parallel"]) > 50 * TOLERANCE


def test_a_nearest_pixel_by_centers_would_be_noticed(monkeypatch):
    name = one_of("hed", "canny", "sem")
    model, arrays = fixture(name)

    def by_centers(x, size):
        return jax.image.resize(x, (len(x), *size, *x.shape[3:]), "nearest")

    monkeypatch.setattr(maps, "resize_nearest", by_centers)
    tokens = module(model, "unet").position_net(grounding(name), dtype=jnp.float32)
    assert relative_error(tokens, arrays["grounding_tokens"]) > 50 * TOLERANCE


def test_jaxs_own_bicubic_would_be_noticed(monkeypatch):
    name = one_of("hed", "canny")
    model, arrays = fixture(name)

    def own(x, size):
        return jax.image.resize(x, (len(x), *size, *x.shape[3:]), "cubic")

    monkeypatch.setattr(maps, "resize_bicubic", own)
    unet = module(model, "unet")
    appended = unet.downsample_net(grounding(name), latent_size(name), dtype=jnp.float32)
    assert relative_error(appended, arrays["downsampled"]) > 50 * TOLERANCE


def test_joints_before_persons_would_be_noticed():
    name = one_of("keypoint")
    model, arrays = fixture(name)
    net, given = module(model, "unet").position_net, grounding(name)
    count = given.points.shape[1]
    by_joint = np.arange(count).reshape(-1, keypoint.JOINTS).T.reshape(-1)
    swapped = keypoint.Grounding(given.points[:, by_joint], given.mask[:, by_joint])
    tokens = np.empty_like(arrays["grounding_tokens"])
    tokens[:, by_joint] = net(swapped, dtype=jnp.float32)
    assert relative_error(tokens, arrays["grounding_tokens"]) > 50 * TOLERANCE


def test_one_mask_for_phrases_and_images_would_be_noticed():
    name = one_of("text_image", "text_image_inpaint")
    model, arrays = fixture(name)
    given = grounding(name)
    tokens = module(model, "unet").position_net(
        given._replace(phrase_weights=given.mask), dtype=jnp.float32
    )
    assert relative_error(tokens, arrays["grounding_tokens"]) > 50 * TOLERANCE

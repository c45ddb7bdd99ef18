"""Proof 1: each network against diffusers and transformers, converted by the real converter."""

import copy
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch

from reground_jax.config import ModelConfig, UNetConfig
from reground_jax.convert.rewire import rewire
from reground_jax.model import network
from reground_jax.networks import transformer
from reground_jax.networks.attention import attention_for
from reground_jax.networks.grounding.features import fourier_features
from reground_jax.networks.grounding.text import Grounding
from reground_jax.networks.transformer import (
    packs,
    plain_without_fusers,
    reads_grounding,
    reads_text,
)
from reground_jax.settings import WIRINGS
from tests import reference
from tests.models import converted, module
from tests.reference import nhwc, relative_error

ATTEND = attention_for("cpu")
# Both sides are float32; a wrong eps or a tanh GELU changes results by 5e-5 of the largest value.
TOLERANCE = 1e-5
MODELS = list(reference.UNETS)


def mixed_amounts(blocks: int) -> jax.Array:
    """A different coupling and different weights for every block, [D, 3]."""
    return jnp.linspace(0.3, 1.4, 3 * blocks, dtype=jnp.float32).reshape(blocks, 3)


def constant_amounts(name: str, coupling: float) -> jax.Array:
    blocks = sum(
        x.attentions * x.transformer_layers for x in converted(name)[0].config.unet.levels()
    )
    return jnp.tile(jnp.array([coupling, 1.0, 1.0], jnp.float32), (blocks, 1))


class Call:
    """Random arguments of one U-Net call, in torch's layout and in ours."""

    def __init__(self, unet, slots: int = 5, height: int = 9, width: int = 7):
        random = torch.Generator().manual_seed(7)
        text_width = unet.config.cross_attention_dim
        # 9 x 7: odd sizes, so upsampling must match the size of the skip.
        self.x = torch.randn(2, unet.config.in_channels, height, width, generator=random)
        self.t = torch.tensor([481, 77])  # a different time step for each sample
        self.text = torch.randn(2, 77, text_width, generator=random)
        self.boxes = torch.rand(2, slots, 4, generator=random)
        self.phrases = torch.randn(2, slots, text_width, generator=random)
        self.mask = torch.tensor([[1.0] * 2 + [0.0] * (slots - 2), [1.0] * slots])

    def theirs(self, unet) -> np.ndarray:
        gligen = {
            "boxes": self.boxes, "masks": self.mask, "positive_embeddings": self.phrases,
        }  # fmt: skip
        with torch.no_grad():
            kwargs = {"cross_attention_kwargs": {"gligen": gligen}}
            return nhwc(unet(self.x, self.t, self.text, **kwargs).sample)

    def ours(
        self, unet, wiring: str, *, dtype=jnp.float32, gate: float | None = 1.0, amounts=None
    ) -> np.ndarray:
        """amounts: for "coupled"; by default `mixed_amounts`."""
        arrays = (self.boxes, self.phrases, self.mask)
        grounding = Grounding(*(jnp.asarray(a.numpy()) for a in arrays))
        text = jnp.asarray(self.text.numpy(), dtype)
        timesteps = jnp.asarray(self.t.numpy(), jnp.float32)
        prepared = unet.prepare(
            text, unet.tokens(grounding, dtype=text.dtype), timesteps, wiring=wiring
        )
        if wiring == "coupled":
            amounts = mixed_amounts(len(prepared.blocks)) if amounts is None else amounts
        out = unet(
            jnp.asarray(nhwc(self.x)),
            prepared,
            gate=None if gate is None else jnp.float32(gate),
            wiring=wiring,
            attend=ATTEND,
            amounts=amounts,
        )
        assert out.dtype == dtype
        return np.asarray(out, np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_the_unet_equals_diffusers_own(name):
    model, theirs, _ = converted(name)
    call = Call(theirs.unet)
    ours = call.ours(module(model, "unet"), "sequential")
    assert relative_error(ours, call.theirs(theirs.unet)) < TOLERANCE


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("name", MODELS)
def test_every_wiring_equals_its_formula_in_torch(name, wiring):
    model, theirs, _ = converted(name)
    rewired, blocks = copy.deepcopy(theirs.unet), len(constant_amounts(name, 1.0))
    rewire(rewired, wiring, mixed_amounts(blocks).tolist())
    call = Call(theirs.unet)
    ours = call.ours(module(model, "unet"), wiring)
    assert relative_error(ours, call.theirs(rewired)) < TOLERANCE


@pytest.mark.parametrize(("coupling", "wiring"), [(1.0, "sequential"), (0.0, "parallel")])
@pytest.mark.parametrize("name", MODELS)
def test_the_ends_of_coupled_are_the_two_wirings(name, coupling, wiring):
    model, theirs, _ = converted(name)
    call, unet = Call(theirs.unet), module(model, "unet")
    ours = call.ours(unet, "coupled", amounts=constant_amounts(name, coupling))
    assert relative_error(ours, call.ours(unet, wiring)) < TOLERANCE


def test_wirings_differ_by_more_than_the_tolerance():
    model, theirs, _ = converted("sd1")
    call, unet = Call(theirs.unet), module(model, "unet")
    outputs = [call.ours(unet, wiring) for wiring in WIRINGS]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert relative_error(one, other) > 100 * TOLERANCE


def _swap_norms(block):
    block.norm2, block.norm3 = block.norm3, block.norm2


def _drop_fuser_feed_forward(block):
    block.fuser.alpha_dense[...] = jnp.zeros(())


def _swap_value_and_gate(block):
    kernel = block.ff.geglu.proj.kernel
    kernel[...] = jnp.roll(kernel[...], kernel.shape[1] // 2, axis=1)


@pytest.mark.parametrize("mutate", [_swap_norms, _drop_fuser_feed_forward, _swap_value_and_gate])
def test_a_mutation_of_one_block_is_noticed(mutate):
    model, theirs, _ = converted("sd1")
    unet, call = module(model, "unet"), Call(theirs.unet)
    mutate(unet.mid_block.attentions[0].blocks[0])
    assert relative_error(call.ours(unet, "sequential"), call.theirs(theirs.unet)) > 10 * TOLERANCE


@pytest.mark.parametrize(
    "wiring", [w for w in WIRINGS if plain_without_fusers(w) and reads_grounding(w)]
)
def test_a_closed_gate_and_no_fuser_give_plain_stable_diffusion(wiring):
    model, theirs, _ = converted("sd1")
    unet, call = module(model, "unet"), Call(theirs.unet)
    plain = call.ours(unet, "no_grounding")
    # A gate of 0 still computes (and adds) zeros, and in the parallel wiring cross-attention's q
    # then comes from folded weights: only rounding may differ.
    assert relative_error(call.ours(unet, wiring, gate=0.0), plain) < TOLERANCE
    np.testing.assert_array_equal(call.ours(unet, wiring, gate=None), plain)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users run it: the tests' type checker would reject the name before the code does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_wiring_with_only_a_name_is_an_error(monkeypatch, unchecked):
    """Not a block that ignores both text and boxes; the reference raises, too."""
    model, theirs, _ = converted("sd1")
    unet, call = module(model, "unet"), Call(theirs.unet)
    text, x = jnp.asarray(call.text.numpy()), jnp.asarray(nhwc(call.x))
    prepared = unet.prepare(text, None, jnp.array([300.0]), wiring="no_grounding")
    monkeypatch.setattr(transformer, "WIRINGS", (*WIRINGS, "new"))
    with pytest.raises(AssertionError, match="new"):
        unet(x, prepared, gate=None, wiring="new", attend=ATTEND)
    rewired = copy.deepcopy(theirs.unet)
    rewire(rewired, "new")
    with pytest.raises(ValueError, match="wiring 'new' has no formula here"):
        call.theirs(rewired)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_wiring_reads_what_it_says(wiring):
    model, theirs, _ = converted("sd1")
    unet, call = module(model, "unet"), Call(theirs.unet)
    before = call.ours(unet, wiring)
    call.text = call.text + 1
    other_text = call.ours(unet, wiring)
    call.boxes = call.boxes / 2
    other_boxes = call.ours(unet, wiring)
    assert (other_text != before).any() == reads_text(wiring)
    assert (other_boxes != other_text).any() == reads_grounding(wiring)


def test_a_gate_of_a_half_scales_both_halves_of_the_fuser():
    model, theirs, _ = converted("sd1")
    half = copy.deepcopy(theirs.unet)
    for block in half.modules():
        if hasattr(block, "alpha_attn"):
            for alpha in (block.alpha_attn, block.alpha_dense):
                alpha.data = torch.atanh(0.5 * torch.tanh(alpha.data))
    call = Call(theirs.unet)
    ours = call.ours(module(model, "unet"), "sequential", gate=0.5)
    assert relative_error(ours, call.theirs(half)) < TOLERANCE


def test_branches_share_what_comes_before_their_contexts():
    """x of B samples with contexts of 2B equals x repeated: one row per branch, as neighbors."""
    model, theirs, _ = converted("sd2")
    unet, call = module(model, "unet"), Call(theirs.unet)
    text = jnp.asarray(call.text.numpy())
    grounding = Grounding(*(jnp.asarray(a.numpy()) for a in (call.boxes, call.phrases, call.mask)))
    prepared = unet.prepare(
        text, unet.tokens(grounding, dtype=text.dtype), jnp.array([300.0]), wiring="parallel"
    )
    x = jnp.asarray(nhwc(call.x[:1]))

    def run(x):
        return unet(x, prepared, gate=jnp.float32(1), wiring="parallel", attend=ATTEND)

    assert relative_error(run(x), run(jnp.repeat(x, 2, axis=0))) < 1e-6


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("name", ["sd1", "odd"])
def test_the_packed_projection_changes_only_rounding(name, wiring):
    model, theirs, _ = converted(name)
    unet, call = module(model, "unet"), Call(theirs.unet)
    grounding = Grounding(*(jnp.asarray(a.numpy()) for a in (call.boxes, call.phrases, call.mask)))
    text, time = jnp.asarray(call.text.numpy()), jnp.array([300.0])
    prepared = unet.prepare(text, unet.tokens(grounding, dtype=text.dtype), time, wiring=wiring)
    if not packs(wiring):  # its two branches read different features, or it has only one
        assert set(prepared.packed) == {None}
        return
    assert all(packed is not None for packed in prepared.packed)
    unpacked = unet.prepare(
        text, unet.tokens(grounding, dtype=text.dtype), time, wiring=wiring, pack=False
    )

    def run(prepared):
        x = jnp.asarray(nhwc(call.x))
        gate = jnp.float32(1)
        return unet(x, prepared, gate=gate, wiring=wiring, attend=ATTEND)

    assert relative_error(run(prepared), run(unpacked)) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_the_autoencoder_equals_diffusers(name):
    model, theirs, _ = converted(name)
    vae, factor = module(model, "vae"), model.config.vae.downsampling
    random = torch.Generator().manual_seed(8)
    images = torch.rand(2, 3, 6 * factor, 5 * factor, generator=random) * 2 - 1
    latents = torch.randn(3, model.config.vae.latent_channels, 6, 5, generator=random)
    with torch.no_grad():
        posterior = theirs.vae.encode(images).latent_dist
        decoded = theirs.vae.decode(latents / theirs.vae.config.scaling_factor).sample
    mean, log_variance = vae.moments(jnp.asarray(nhwc(images)), attend=ATTEND)
    assert relative_error(mean, nhwc(posterior.mean)) < TOLERANCE
    assert relative_error(log_variance, nhwc(posterior.logvar)) < TOLERANCE
    scaled = vae.encode(jnp.asarray(nhwc(images)), attend=ATTEND)
    np.testing.assert_allclose(scaled, mean * theirs.vae.config.scaling_factor, rtol=1e-6)
    z = jnp.asarray(nhwc(latents))
    assert relative_error(vae.decode(z, attend=ATTEND), nhwc(decoded)) < TOLERANCE
    # 3 images, chunks of 1: a chunk must divide the batch.
    chunked = vae.decode_in_chunks(z, attend=ATTEND, pixels=60 * factor**2)
    assert relative_error(chunked, nhwc(decoded)) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_the_text_encoder_equals_transformers(name):
    model, theirs, _ = converted(name)
    random = torch.Generator().manual_seed(9)
    ids = torch.randint(0, 990, (3, 77), generator=random)
    pad = theirs.tokenizer.pad_token_id
    ids[0, 8], ids[0, 9:] = 999, pad  # a short text: end-of-text is 999, then padding
    ids[1, 50], ids[1, 51:] = 999, pad
    ids[2, 76] = 999  # a full one
    with torch.no_grad():
        expected = theirs.text_encoder(ids)
    ours = module(model, "text_encoder")(jnp.asarray(ids.numpy(), jnp.int32))
    assert relative_error(ours.hidden, expected.last_hidden_state) < TOLERANCE
    assert relative_error(ours.pooled, expected.pooler_output) < TOLERANCE


def test_bfloat16_is_close_to_float32():
    model, theirs, _ = converted("sd1")
    unet, call = module(model, "unet"), Call(theirs.unet)
    low = call.ours(unet, "parallel", dtype=jnp.bfloat16)
    # bfloat16 has 8 bits: an error of about 4e-3 per rounding, over some 50 layers.
    assert relative_error(low, call.ours(unet, "parallel")) < 0.05


def test_box_features_stay_float32_for_bfloat16_models():
    boxes = jnp.array([[0.1, 0.2, 0.97, 0.99]])
    features = fourier_features(boxes)
    assert features.dtype == jnp.float32
    # The highest frequency, 100 ** (7 / 8), turns a bfloat16 coordinate's error into 0.1 radian.
    rounded = fourier_features(boxes.astype(jnp.bfloat16))
    assert jnp.abs(rounded - features).max() > 0.05


def test_parameter_counts_are_the_published_ones():
    def count(config: ModelConfig, name: str) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(network(config, name)[1]))

    gligen = ModelConfig()
    plain = ModelConfig(unet=UNetConfig(grounding=None))
    assert round(count(gligen, "unet") / 1e6, 2) == 1068.62  # GLIGEN text-box
    assert round(count(plain, "unet") / 1e6, 2) == 859.52  # SD1.x
    assert round(count(gligen, "text_encoder") / 1e6, 2) == 123.06  # CLIP ViT-L/14 text
    assert round(count(gligen, "vae") / 1e6, 2) == 83.65  # Stable Diffusion's f8 autoencoder
    second = UNetConfig(num_heads=(5, 10, 20, 20), text_width=1024)
    assert round(count(ModelConfig(unet=second), "unet") / 1e6, 1) == 1078.5  # igligen-sd2.1

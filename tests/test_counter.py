"""The counter against published counts, and against the matrix products in the real program."""

import numpy as np
import pytest

from reground_jax.config import CLIPTextConfig, MapConfig, UNetConfig, VAEConfig
from reground_jax.counter import (
    FUSER,
    INVARIANT,
    SCORES,
    run_macs,
    text_encoder_macs,
    unet_macs,
    vae_decoder_macs,
    vae_encoder_macs,
)
from reground_jax.networks import convnext
from reground_jax.storage.description import read_description
from tests import kinds

GIGA = 1e9


def total(macs, leave_out=()):
    return sum(count for part, count in macs.items() if part not in leave_out) / GIGA


def test_stable_diffusion_and_gligen_have_their_published_counts():
    plain = unet_macs(UNetConfig(), 64, 64, fusers=False)
    gligen = unet_macs(UNetConfig(), 64, 64)
    assert round(total(plain), 1) == 401.6  # with attention scores
    assert round(total(plain, SCORES), 1) == 338.6  # the figure that tools print
    assert round(total(gligen), 1) == 568.4
    assert total(plain) == total(unet_macs(UNetConfig(grounding=None), 64, 64))


@pytest.mark.parametrize(
    ("part", "published"),
    [
        ("resnets", 163.26),
        ("feed_forward", 76.76),
        ("fuser_feed_forward", 76.76),
        ("fuser_scores", 61.94),
        ("self_scores", 61.25),
        ("resampling", 36.81),
        ("self_projections", 25.59),
        ("fuser_projections", 25.59),
        ("proj_in_out", 12.79),
        ("cross_projections", 12.79),
        ("shortcuts", 9.02),
        ("cross_scores", 1.78),
        ("text_kv", 1.48),
        ("dead_queries", 1.46),
        ("grounding", 1.06),
    ],
)
def test_every_part_has_its_share(part, published):
    # The published table rounds to two decimals.
    assert unet_macs(UNetConfig(), 64, 64)[part] / GIGA == pytest.approx(published, abs=0.006)


def test_what_no_step_changes_is_less_than_a_hundredth():
    macs = unet_macs(UNetConfig(), 64, 64)
    assert total(macs) - total(macs, INVARIANT) == pytest.approx(4.03, abs=0.01)  # 0.71 %
    assert 1 - total(macs, FUSER) / total(macs) == pytest.approx(0.293, abs=0.001)


def test_fusers_off_after_gamma_save_a_fifth():
    settings = dict(num_steps=50, guided=True)
    always = run_macs(UNetConfig(), 64, 64, grounded_steps=50, **settings)
    some = run_macs(UNetConfig(), 64, 64, grounded_steps=15, **settings)
    assert 1 - some / always == pytest.approx(0.205, abs=0.002)


def test_the_vae_decoder_has_its_published_count():
    assert round(vae_decoder_macs(VAEConfig(), 64, 64) / GIGA) == 1257


def test_the_encoders_have_the_products_of_the_traced_networks():
    assert round(vae_encoder_macs(VAEConfig(), 64, 64) / GIGA, 2) == 558.33
    assert round(text_encoder_macs(CLIPTextConfig()) / GIGA, 3) == 6.649


@pytest.mark.parametrize("name", ["text_image", "keypoint", "canny", "sem"])
def test_the_tokens_of_a_kind_are_as_many_as_its_network_makes(name):
    config = read_description(kinds.converted(name)).config.unet
    with np.load(kinds.source(name).with_suffix(".npz")) as arrays:
        made = arrays["grounding_tokens"].shape[1]
        boxes = arrays["masks"].shape[1] if "masks" in arrays else 1
    assert config.tokens(boxes) == made


def test_the_backbone_of_maps_has_its_published_count():
    assert round(convnext.macs(MapConfig().depths, MapConfig().widths, 224) / GIGA, 1) == 4.5

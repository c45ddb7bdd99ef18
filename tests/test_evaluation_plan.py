"""What a study takes, by the counter: the numbers of the protocol."""

import dataclasses

import pytest

from reground_jax.bench.presets import preset_config
from reground_jax.counter import run_macs, vae_decoder_macs
from reground_jax.evaluation.studies.plan import flop
from reground_jax.settings import Settings

SEVEN = (0, 0.1, 0.2, 0.3, 0.5, 0.8, 1)


def variants(*gammas: float, **changes) -> list[Settings]:
    return [Settings(wiring="sequential", gamma=gamma, **changes) for gamma in gammas]


def test_a_sweep_takes_what_its_steps_take_once():
    config = preset_config("sd14")
    one = flop(config, variants(1.0))
    assert one / 1e12 == pytest.approx(117.7, abs=0.1)
    alone = sum(flop(config, variants(gamma)) for gamma in SEVEN)
    assert alone / 1e12 == pytest.approx(688, rel=0.001)
    assert flop(config, variants(*SEVEN)) / 1e12 == pytest.approx(462, rel=0.002)
    assert flop(config, variants(0.0)) < flop(config, variants(0.3)) < one
    without = [dataclasses.replace(v, wiring="no_grounding") for v in variants(1.0)]
    assert flop(config, without) < one


def test_the_counter_agrees_where_it_counts_a_whole_run():
    config = preset_config("sd14")
    (settings,) = variants(0.3, solver="ddim")
    whole = run_macs(config.unet, 64, 64, num_steps=50, grounded_steps=15)
    whole += vae_decoder_macs(config.vae, 64, 64)
    assert flop(config, [settings]) == pytest.approx(2 * whole, rel=1e-3)  # and the texts
    (half,) = variants(0.3, solver="ddim", guidance_interval=(0.0, 0.5))
    assert 0.7 < flop(config, [half]) / flop(config, [settings]) < 0.8

"""Proof 5: a random GLIGEN of SD1.4's size, from fp16 diffusers folder to latents, by hand.

    pytest -m slow -s tests/test_full_size.py      (minutes on 2 cores, 14 GB of memory)

Each stage is a separate process and reports its time and its peak memory (resident set). And of
every kind of GLIGEN, the number of parameters, by shape.
"""

import math

import numpy as np
import pytest
from flax import nnx

from benchmarks.peer import Options, compare, prepare, show
from reground_jax.config import MapConfig, ModelConfig, UNetConfig
from reground_jax.kinds import KINDS as NAMES
from reground_jax.kinds import MAP_KINDS
from reground_jax.model import network
from reground_jax.networks.grounding import KINDS
from reground_jax.storage.checkpoint import flatten

# Parameters of the original classes at the sizes in GLIGEN's YAML files.
POSITION_NETS = {
    "text": 1.0840, "text_image": 2.1679, "keypoint": 1.0868, "sem": 28.9230,
    **dict.fromkeys(("hed", "canny", "depth", "normal"), 28.9189),
}  # fmt: skip
DOWNSAMPLERS = {"hed": 0, "canny": 588, "depth": 588, "normal": 716, "sem": 40984}
UNETS = {"text": 1068.62, "text_image": 1069.71, "canny": 1096.48}


def full_size(kind: str) -> UNetConfig:
    if kind not in MAP_KINDS:
        return UNetConfig(grounding=kind)
    others = {"hed": {"downsampler": ()}, "sem": {"downsampler": (16, 8), "classes": 152}}
    return UNetConfig(grounding=kind, map=MapConfig(**others.get(kind, {})))


def parameters(tree) -> int:
    return sum(math.prod(leaf.shape) for _, leaf in flatten(tree))


def made(part, config: UNetConfig) -> int:
    shapes = nnx.eval_shape(lambda: part(config, rngs=nnx.Rngs(0)))
    return parameters(nnx.to_pure_dict(nnx.state(shapes)))


@pytest.mark.parametrize("kind", NAMES)
def test_the_networks_of_a_kind_are_as_large_as_gligens(kind):
    config, networks = full_size(kind), KINDS[kind]
    assert round(made(networks.position_net, config) / 1e6, 4) == POSITION_NETS[kind]
    assert (networks.downsampler is not None) == (kind in DOWNSAMPLERS)
    if config.map is not None:
        assert config.map.tokens == 64
        assert made(networks.downsampler, config) == DOWNSAMPLERS[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNETS)
def test_the_unet_of_a_kind_is_as_large_as_gligens(kind):
    _, shapes = network(ModelConfig(full_size(kind)), "unet")
    assert round(parameters(shapes) / 1e6, 2) == UNETS[kind]


@pytest.mark.slow
def test_a_full_size_model_gives_diffusers_latents(tmp_path):
    options = Options(preset="sd14", steps=2, repeats=1, parallel=True)
    prepared = prepare(tmp_path, options)
    assert round(prepared["convert"]["unet_parameters"] / 1e6, 2) == 1068.62
    assert prepared["convert"]["dtype"] == "float16"  # the source's
    record = compare(tmp_path, options)
    print("\n" + show(record))
    # float32 on both sides, after two steps and the decoder
    assert record["errors"]["latents"] < 1e-4 and record["errors"]["image"] < 1e-4
    sequential, parallel = (
        np.load(tmp_path / f"ours-{wiring}-latents.npy") for wiring in options.wirings
    )
    assert np.abs(sequential - parallel).max() > 1e-3

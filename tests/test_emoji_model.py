"""The built-in models: they are found, are small, and draw what a layout asks for."""

import functools
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import UInt8
from PIL import Image

from reground_jax.convert.locate import BUILT_IN, MODELS, model_directory
from reground_jax.emoji.cases import heldout_cases
from reground_jax.emoji.probes import Probes
from reground_jax.emoji.scorer import probe_score
from reground_jax.emoji.world import WorldConfig
from reground_jax.images import to_uint8
from reground_jax.layout import Layout
from reground_jax.model import read_description
from reground_jax.pipeline import Pipeline
from reground_jax.settings import Wiring
from tests.renders import renders

COUNT = 24  # layouts


@functools.cache
def pipe() -> Pipeline:
    return Pipeline.load("emoji")


def test_a_built_in_model_is_found_unless_something_else_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in BUILT_IN:
        assert model_directory(name) == MODELS / name
    (tmp_path / "emoji").mkdir()
    with pytest.raises(ValueError, match="emoji"):  # the user's folder takes precedence
        model_directory("emoji")


def test_the_built_in_models_are_small_and_have_training_records():
    for name in BUILT_IN:
        size = sum(file.stat().st_size for file in (MODELS / name).rglob("*") if file.is_file())
        assert size < 30e6
        info = read_description(MODELS / name).info
        assert info["dtype"] == "bfloat16"
        assert info["training"][0]["stage"] == "autoencoder"
    models = [read_description(MODELS / name) for name in BUILT_IN]
    wirings = [model.info["training"][-1]["wiring"] for model in models]
    assert wirings == ["sequential", "parallel", "sequential"]
    assert [model.config.unet.grounding for model in models] == ["text", "text", "sem"]


def test_things_appear_where_a_painted_map_has_their_labels():
    path = Path(__file__).parent.parent / "docs" / "maps" / "vase_and_car.png"
    with Image.open(path) as painted:
        labels = np.asarray(painted)
    names = WorldConfig().categories
    boxes = {
        names[label - 1]: (*np.argwhere(labels == label).min(0)[::-1] / labels.shape[0],
                           *np.argwhere(labels == label).max(0)[::-1] / labels.shape[0])
        for label in np.unique(labels) if label
    }  # fmt: skip
    assert list(boxes) == ["car", "vase"]
    model, count = Pipeline.load("emoji-sem"), 8
    layouts = [Layout("a vase and a car on the grass", map=path)] * count
    right = {}
    wirings: tuple[Wiring, ...] = ("sequential", "no_grounding")
    for wiring in wirings:
        made = model(layouts, wiring=wiring, seeds=range(count), output="numpy")
        owners = [i for i in range(count) for _ in boxes]
        seen = Probes.load().objects(
            to_uint8(made, value_range="0..1"), owners, [*boxes.values()] * count
        )
        right[wiring] = np.mean(
            [s[0] == name for s, name in zip(seen, [*boxes] * count, strict=True)]
        )
    assert right["sequential"] > 0.8 and right["no_grounding"] < 0.5, right


@functools.cache
def drawn(wiring: Wiring) -> UInt8[np.ndarray, "B S S 3"]:
    """The first held-out layouts."""
    images = pipe()(
        [case.layout for case in heldout_cases(COUNT)], wiring=wiring, num_steps=20,
        solver="dpmpp_2m", guidance_scale=4.0, output="numpy", seeds=range(COUNT),
    )  # fmt: skip
    return to_uint8(images, value_range="0..1")


@pytest.mark.parametrize("wiring", ["sequential", "parallel"])
def test_images_are_closer_to_the_renders_of_their_own_layouts(wiring):
    """Closer than to the renders of other layouts, by mean absolute pixel difference."""
    truth = renders()[0][:COUNT]
    made = drawn(wiring).astype(np.float32)
    # distances[i, j]: between image i and render j
    distances = np.abs(made[:, None] - truth[None].astype(np.float32)).mean((2, 3, 4))
    own = np.diag(distances)
    others = (distances.sum(1) - own) / (COUNT - 1)
    assert own.mean() < 0.6 * others.mean()
    nearest = distances.argmin(1)
    assert (nearest == np.arange(COUNT)).mean() >= 0.75  # by chance: 0.04


def test_the_probe_finds_the_requested_objects_in_their_boxes():
    """Over 90 % on 1,000 layouts (benchmarks/records); the limit is looser for these few."""
    cases, score = heldout_cases(COUNT), probe_score(Probes.load())
    shares = {}
    wirings: tuple[Wiring, ...] = ("sequential", "no_grounding")
    for wiring in wirings:
        records = score(drawn(wiring), cases)
        right, asked = np.sum([record["box"] for record in records], axis=0)
        shares[wiring] = right / asked
    assert shares["sequential"] > 0.8 and shares["no_grounding"] < 0.3, shares

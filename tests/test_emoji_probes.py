"""The shipped probes on held-out renders, and the parts of their training."""

import dataclasses
from collections import Counter
from importlib.resources import files

import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.emoji.cases import heldout_cases
from reground_jax.emoji.probe_networks import NOTHING, Vocabulary, build, cell_boxes, cell_centers
from reground_jax.emoji.probes import CROP, Probes, crop
from reground_jax.emoji.scorer import TEXT, probe_score, reference
from reground_jax.emoji.train_probes import (
    cell_targets,
    focal,
    object_batch,
    overlaps,
    scene_batch,
    train,
)
from reground_jax.emoji.world import World, WorldConfig
from reground_jax.evaluation.statistics import Gaussian, bootstrap_weights, frechet_distance, share
from reground_jax.training.recipe import Recipe
from tests.renders import COUNT, renders
from tests.test_emoji_world import shapes


@pytest.fixture(scope="module")
def probes() -> Probes:
    return Probes.load()


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig(), shapes())


def test_the_shipped_probes_know_the_default_world_and_are_small(probes):
    assert probes.names == Vocabulary.of_world(WorldConfig())
    data = files("reground_jax.emoji").joinpath("data")
    assert data.joinpath("probes.npz").stat().st_size < 5e6


def test_the_probes_see_what_held_out_renders_show(probes):
    images, cases = renders()
    records = probe_score(probes)(images, cases)
    once = bootstrap_weights(COUNT)[:1]
    # 97 % on 1,000 renders; with these 32, one error costs 2 to 6 %.
    assert share("box")(records, once) > 0.9
    assert share("setting", "night", "style")(records, once) > 0.9
    assert share(*TEXT)(records, once) > 0.85
    assert share("count")(records, once) > 0.8


def test_the_probes_see_nothing_in_empty_images(probes):
    images, cases = renders()
    other = [  # each image filled with the color of its top left pixel
        np.full((64, 64, 3), image[0, 0], np.uint8) for image in images
    ]
    owners = [i for i, c in enumerate(cases) for _ in c.layout.boxes]
    boxes = [box for c in cases for box in c.layout.boxes]
    seen = Counter(category for category, _ in probes.objects(np.stack(other), owners, boxes))
    assert seen[NOTHING] > 0.9 * len(boxes)


def test_measured_accuracy_is_shipped_and_at_least_97_percent():
    facts, _ = reference()
    cases = heldout_cases(1000)
    for kind in ("renders", "decoded"):
        assert [record["id"] for record in facts[kind]] == [c.layout.id for c in cases]
        assert facts["accuracy"][kind]["object"] >= 0.97
        for name in ("setting", "time", "style"):
            assert facts["accuracy"][kind][name] >= 0.97


def test_renders_are_near_their_reference_and_noise_is_not(probes):
    facts, others = reference()
    own = Gaussian.of(np.array([record["features"] for record in facts["renders"]]))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)
    strange = Gaussian.of(np.stack([scene.features for scene in probes.scenes(noise)]))
    assert frechet_distance(own, others) < 0.1 * frechet_distance(strange, others)


def test_saved_probes_load_with_the_same_answers(probes, tmp_path):
    probes.save(tmp_path / "probes.npz")
    again = Probes.load(tmp_path / "probes.npz")
    assert again.names == probes.names and again.threshold == probes.threshold
    assert again.checksum == probes.checksum
    images, cases = renders()
    boxes = cases[0].layout.boxes
    owners = [0] * len(boxes)
    assert again.objects(images, owners, boxes) == probes.objects(images, owners, boxes)


def test_no_boxes_give_no_answers_and_other_sizes_are_refused(probes):
    assert probes.objects(np.zeros((1, 64, 64, 3), np.uint8), [], []) == []
    with pytest.raises(ValueError, match="images are 128x96: these probes take 64x64"):
        probes.scenes(np.zeros((1, 96, 128, 3), np.uint8))


def test_a_crop_is_its_box_and_a_margin_clipped_to_the_image():
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:32, 16:32] = 255  # with a black margin of an eighth of 16 pixels: 2 of 20 on each side
    inside = crop(image, (0.25, 0.25, 0.5, 0.5))
    assert inside.shape == (CROP, CROP, 3)
    assert inside[:2].max() == 0 and inside[6:-6, 6:-6].min() == 255
    image[:16] = 255
    assert (crop(image, (0, 0, 1, 0.2)) == 255).all()  # no margin beyond the image's upper edge


def test_cell_boxes_are_centered_on_their_cells():
    """Log distances of zero give a box that extends two cells to each side of its center."""
    edges = np.asarray(cell_boxes(jnp.zeros((1, 16, 16, 4))))[0]
    x, y = cell_centers(16)[3, 5]
    assert (x, y) == (5.5 / 16, 3.5 / 16)
    np.testing.assert_allclose(edges[3, 5], np.array([3.5, 1.5, 7.5, 5.5]) / 16, atol=1e-6)


def test_cell_targets_mark_centers_and_small_objects_take_precedence(world):
    names = Vocabulary.of_world(world.config)
    large = {"category": "cat", "box": (0.0, 0.0, 1.0, 1.0)}
    small = {"category": "dog", "box": (0.5, 0.5, 0.75, 0.75)}
    example = world.example(0)
    scene = dataclasses.replace(example, facts={"objects": [small, large]})
    category, edges = cell_targets(scene, names, 16)
    cat, dog = (names.categories.index(name) for name in ("cat", "dog"))
    assert category[7, 7] == cat and category[10, 10] == dog and category[0, 0] == -1
    # Both centers lie on a corner of four cells; the next cells are 1.5 cells away.
    assert (category == cat).sum() == (category == dog).sum() == 4
    assert tuple(edges[10, 10]) == small["box"]
    assert tuple(edges[0, 0]) == (0, 0, 1, 1)  # any box that avoids a division by zero


def test_batches_have_objects_and_background_and_are_reproducible(world):
    names = Vocabulary.of_world(world.config)
    batch = object_batch(world, names, 64, 3)
    nothing = names.categories.index(NOTHING)
    assert batch.crops.shape == (64, CROP, CROP, 3)
    assert ((batch.attribute == -1) == (batch.category == nothing)).all()
    assert 10 < (batch.category == nothing).sum() < 40
    again = object_batch(world, names, 64, 3)
    np.testing.assert_array_equal(batch.crops, again.crops)
    scenes = scene_batch(world, names, 4, 0)
    assert scenes.images.shape == (4, 64, 64, 3) and (scenes.category >= 0).any((1, 2)).all()


def test_losses_match_their_formulas():
    logits, target = jnp.array([0.0, 0.0, 4.0]), jnp.array([1.0, 0.0, 1.0])
    p = 1 / (1 + np.exp(-4))
    expected = [0.25 * 4 * np.log(2) / 4, 0.75 * 4 * np.log(2) / 4, -((1 - p) ** 2) * np.log(p)]
    np.testing.assert_allclose(focal(logits, target), expected, rtol=1e-5)
    a, b = jnp.array([0.0, 0.0, 0.5, 1.0]), jnp.array([0.25, 0.0, 0.75, 1.0])
    np.testing.assert_allclose(overlaps(a, b), 1 / 3, rtol=1e-6)


def test_training_writes_probes_that_load(world, tmp_path):
    names = Vocabulary.of_world(world.config)
    recipe = Recipe(num_steps=2, batch_size=8, warmup_steps=1)  # AdamW compiles faster
    trained = train("object", world, names, recipe, tmp_path)
    fresh = Probes(names, {"object": trained}, 0.5)
    fresh.save(tmp_path / "probes.npz")
    loaded = Probes.load(tmp_path / "probes.npz").params["object"]
    leaf = np.asarray(trained["category"]["kernel"])
    np.testing.assert_allclose(loaded["category"]["kernel"], leaf, rtol=1e-3, atol=1e-6)  # float16
    start = build("object", names)[1]["category"]["kernel"]
    assert not np.allclose(leaf, start, rtol=0, atol=1e-6)  # training changed the weights

"""Every kind of checkpoint from its file to images: in Python, on the command line, in batches."""

import dataclasses
import functools
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from reground_jax.cli import main
from reground_jax.convert.conversion import convert
from reground_jax.images import read_recipe
from reground_jax.layout import Layout
from reground_jax.networks.clip_vision import image_features
from reground_jax.packing import known_cells
from reground_jax.pictures import Picture
from reground_jax.pictures.pixels import source_pixels
from reground_jax.pipeline import Pipeline
from reground_jax.request import check_model
from reground_jax.session import Session
from reground_jax.settings import Settings
from tests import kinds
from tests.fixtures import fixtures
from tests.kinds import MAP_KINDS, layout, pictures
from tests.marks import slow, some
from tests.reference import relative_error
from tests.test_original import (
    NAMES,
    PLMS_TOLERANCE,
    TOLERANCE,
    arrays_of,
    conditioning_of,
    plms_key,
)

FAST = Settings(num_steps=3, gamma=0.7, guidance_scale=3.0)


@functools.cache
def pipe(name: str, **options) -> Pipeline:
    return Pipeline.load(kinds.converted(name), **options)


# Against the original.


@pytest.mark.parametrize(
    ("name", "wiring"),
    [
        *((name, "parallel") for name in NAMES if name in ("text_image", "keypoint", "sem")),
        *(slow(name, "sequential") for name in NAMES if "inpaint" not in name),
        *(slow(name, "parallel") for name in (*MAP_KINDS, "text_box") if name in NAMES),
    ],
)
def test_a_session_equals_the_original(name, wiring):
    """What `test_original` proves of the loop, of the pipeline's own programs."""
    model = Pipeline.load(kinds.converted(name, fixtures()))
    arrays = arrays_of(name)
    key, steps, scale = plms_key(name, wiring)
    gamma = tuple(float(part) for part in arrays["gamma"])
    settings = Settings(wiring=wiring, gamma=gamma, num_steps=steps, guidance_scale=scale)
    seeds = np.zeros(len(arrays["x"]), np.uint32)
    session = Session(
        model.programs, model.params, conditioning_of(name), settings, seeds, latents=arrays["x"]
    )
    assert relative_error(session.finish(), arrays[key]) < PLMS_TOLERANCE


def test_points_are_packed_as_in_the_original():
    arrays = arrays_of("keypoint")
    persons = arrays["points"].shape[1] // 17
    for row, (points, mask) in enumerate(zip(arrays["points"], arrays["masks"], strict=True)):
        joints = [tuple(p) if m else None for p, m in zip(points.tolist(), mask, strict=True)]
        own = [joints[17 * i : 17 * (i + 1)] for i in range(persons)]
        given = Layout("", keypoints=[person for person in own if any(person)])
        made = pipe("keypoint").encode(given).grounding
        # The original's own order is not by size, so persons are compared as a set.
        ours, theirs = (
            {tuple(map(tuple, p)) for p in np.where(m[..., None], p, 0).reshape(persons, 17, 2)}
            for p, m in ((made.points[0], made.mask[0]), (points, mask))
        )
        assert ours == theirs, row


@pytest.mark.parametrize("name", [name for name in NAMES if "inpaint" in name])
def test_the_mask_of_the_boxes_equals_the_originals(name):
    arrays = arrays_of(name)
    size = arrays["x"].shape[1:3]
    for boxes, mask, known in zip(
        arrays["boxes"], arrays["masks"], arrays["inpaint_mask"], strict=True
    ):
        np.testing.assert_array_equal(known_cells(boxes[mask > 0].tolist(), *size), known[..., 0])


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("text_image")])
def test_the_features_of_images_equal_the_originals(name):
    arrays = arrays_of(name)
    matrix = arrays["projection_matrix"]
    given = arrays["image_masks"] > 0
    embeds = jnp.asarray(arrays["clip_image_embeds"])
    ours = np.asarray(image_features(embeds, jnp.asarray(matrix)))
    assert relative_error(ours[given], arrays["image_embeddings"][given]) < TOLERANCE
    kernel = np.asarray(pipe(name).params["image_project"]["kernel"])
    np.testing.assert_array_equal(kernel, matrix)
    wrong = np.asarray(image_features(embeds, jnp.asarray(matrix.T)))
    assert relative_error(wrong[given], arrays["image_embeddings"][given]) > 0.1


# Images.


@pytest.mark.parametrize("name", some(kinds.ALL, ("text_image_inpaint", "canny")))
def test_what_a_layout_has_changes_the_image_until_gamma(name):
    """Under both wirings; each layout of a batch has its own, as if it were alone."""
    model, full = pipe(name), layout(name)
    changes = {
        "sem": {"map": np.zeros((8, 8), np.uint8)},
        "keypoint": {"keypoints": [[[0.5, 0.5]] * 17]},
        **dict.fromkeys(("text", "text_image"), {"boxes": [[0, 0, 1, 1] for _ in full.boxes]}),
    }
    inverted = {"map": 255 - np.asarray(full.map.open())} if name in MAP_KINDS else {}
    changed = dataclasses.replace(full, **changes.get(str(model.config.unet.grounding), inverted))
    for wiring in ("sequential", "parallel"):
        settings: Any = {"wiring": wiring, "output": "latents", "seeds": [5, 5]}
        both = model([full, changed], FAST, **settings)
        assert np.isfinite(both).all()
        assert relative_error(both[0], both[1]) > 3e-5  # rounding is below 1e-5
        same = model([full, full], FAST, **settings)
        np.testing.assert_array_equal(same[0], same[1])
        assert relative_error(same[0], both[0]) < 1e-5
    swept = model.sweep([full, full], FAST, gammas=[0, 0.7], output="latents", seeds=[5, 5])
    assert relative_error(swept[0.7], same) < 1e-5  # parallel is the default
    plain = model([full, full], FAST, **settings | {"wiring": "no_grounding"})
    assert relative_error(swept[0], plain) < 1e-5


@pytest.mark.parametrize("name", some(("text_image", "canny"), ()))
def test_other_mappers_and_half_precision_give_the_same(name):
    full, options = [layout(name)], {"output": "latents", "seeds": [1]}
    usual = pipe(name)(full, FAST, **options)
    assert relative_error(pipe(name, mapper="pmap")(full, FAST, **options), usual) < 1e-5
    half = pipe(name, dtype="bfloat16")(full, FAST, **options)
    assert relative_error(half, usual) < 0.2  # three steps of a random model amplify rounding


@pytest.mark.parametrize("name", some(kinds.INPAINTING, ("text_image_inpaint",)))
def test_inpainting_keeps_what_is_outside_the_boxes(name):
    model, full = pipe(name), layout(name)
    (h, w, _), factor = model.programs.latent_shape(FAST), model.config.vae.downsampling
    session = model.session([full], FAST, seeds=[3])
    latents = np.asarray(session.finish())
    pixels = source_pixels(full.source, h * factor, w * factor)
    vae = model.programs.known_part(model.params, model.encode(full).known)
    outside = known_cells(full.boxes, h, w) > 0
    np.testing.assert_array_equal(latents[0][outside], np.asarray(vae.latents)[0][outside])
    assert 0 < outside.mean() < 1
    again = model([full, full, full], FAST, seeds=[3, 4, 3], output="latents")
    np.testing.assert_array_equal(again[0], again[2])
    assert relative_error(latents[0], again[0]) < 1e-5
    inside = ~outside
    assert relative_error(again[0][inside], again[1][inside]) > 1e-3
    (pasted,) = model([full], FAST, seeds=[3], paste=True)
    across = np.kron(outside, np.ones((factor, factor))) > 0
    np.testing.assert_array_equal(np.asarray(pasted)[across], pixels[across])
    (usual,) = model([full], FAST, seeds=[3])
    np.testing.assert_array_equal(np.asarray(pasted)[~across], np.asarray(usual)[~across])
    half_way = model.session([full], FAST, seeds=[3]).run(1).preview()
    assert np.isfinite(np.asarray(half_way)).all()


def test_a_weight_of_a_half_is_between_none_and_all():
    model = pipe("text_image")
    net: Any = model.programs.unet(model.params).position_net
    given = [model.encode(layout("text_image", image_weights=w)).grounding for w in (0, 0.5, 1)]
    tokens = [net(jax.tree.map(jnp.asarray, own), dtype=jnp.float32) for own in given]
    phrases = model.encode(layout("text_image")).grounding.phrases.shape[1]
    for other in tokens[1:]:
        np.testing.assert_array_equal(other[:, :phrases], tokens[0][:, :phrases])
        assert relative_error(other[:, phrases:], tokens[0][:, phrases:]) > 1e-2
    assert relative_error(tokens[1], tokens[2]) > 1e-2


# What cannot be had.


def test_without_the_first_convolution_gamma_must_be_1(tmp_path):
    own = kinds.companions(kinds.source("canny"), tmp_path)
    del own["first_conv"]
    with pytest.warns(UserWarning, match="only generate with gamma 1: pass SD_input_conv"):
        convert(kinds.source("canny"), tmp_path / "model", **own)
    model = Pipeline.load(tmp_path / "model")
    full = layout("canny")
    options: Any
    for options in ({"gamma": 0.5}, {"gamma": 1, "wiring": "no_grounding"}):
        with pytest.raises(ValueError, match=r"use gamma=1 .* --first-conv"):
            model([full], FAST, **options)
    with pytest.raises(ValueError, match="--first-conv"):
        model.sweep([full], FAST, gammas=[1, 0.5])
    assert np.isfinite(model([full], FAST, gamma=1, output="latents")).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("canny", {"first_conv": kinds.source("canny")}, r"has shape \(32, 12, 3, 3\), but"),
        (
            "canny",
            {"clip": "x"},
            "of kind canny, which reads no reference images: leave out --clip",
        ),
        ("keypoint", {"first_conv": "x"}, "of kind keypoint, which has only one first convolution"),
        ("text_image", {"projection": kinds.source("canny")}, "a state dict may only hold arrays"),
    ],
)
def test_a_companion_that_does_not_fit_is_refused(name, options, message, tmp_path):
    own = kinds.companions(kinds.source(name), tmp_path) | options
    with pytest.raises(ValueError, match=message):
        convert(kinds.source(name), tmp_path / "model", **own)
    assert not (tmp_path / "model").exists()


def test_settings_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="this model has none .kind canny."):
        check_model(pipe("canny").config, Settings(attention_guidance="boxdiff"))
    with pytest.raises(ValueError, match="paste=True .* this model makes whole images"):
        check_model(pipe("canny").config, Settings(paste=True))


# On the command line.


def options_of(name: str) -> list[str]:
    value, folder, options = kinds.request(name), pictures(), []
    rows = zip(
        value.get("boxes", ()), value.get("phrases", ()), value.get("images", [None] * 4),
        strict=False,
    )  # fmt: skip
    for box, phrase, image in rows:
        numbers = ",".join(map(str, box))
        options += [] if phrase is None else ["--box", f"{phrase}@{numbers}"]
        options += [] if image is None else ["--image", f"{folder / image}@{numbers}"]
    for field in ("map", "source"):
        options += [f"--{field}", str(folder / value[field])] if field in value else []
    return options + (["--keypoints", str(folder / "pose.json")] if "keypoints" in value else [])


@pytest.mark.parametrize("name", some(kinds.ALL, ("keypoint", "depth")))
def test_a_command_draws_and_its_image_draws_it_again(name, tmp_path, capsys):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    model = ["--model", str(kinds.converted(name))]
    how = ["--steps", "2", "--gamma", "0.5", "--seed", "7"]
    assert main(["generate", "a bird", *options_of(name), *model, *how, "--out", str(first)]) == 0
    recipe = read_recipe(first)
    made = {field: picture.sha256 for field, picture in recipe.layout.pictures.items()}
    assert all(p.path and p.path.is_absolute() for p in recipe.layout.pictures.values())
    assert bool(made) == (name not in ("text_box", "keypoint"))
    assert main(["generate", "--from", str(first), "--out", str(again)]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))


def test_a_picture_that_changed_is_refused_by_name(tmp_path, capsys):
    own = tmp_path / "map.png"
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(own)
    out = tmp_path / "a.png"
    base = ["generate", "a bird", "--model", str(kinds.converted("depth")), "--steps", "1"]
    assert main([*base, "--map", str(own), "--out", str(out)]) == 0
    Image.fromarray(np.ones((40, 40), np.uint8)).save(own)
    assert main(["generate", "--from", str(out), "--out", str(tmp_path / "b.png")]) != 0
    assert "map.png changed since its checksum was recorded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            "depth",
            ["--box", "a bird@0,0,1,1"],
            "has boxes, but this model is grounded by a depth map",
        ),
        ("depth", [], "has no map, but this model is grounded by a depth map"),
        ("depth", ["--map", "missing.png"], "missing.png: there is no such file"),
        (
            "keypoint",
            ["--map", "canny.png"],
            "has a map, but this model is grounded by the key points",
        ),
        ("keypoint", ["--keypoints", "missing.json"], "cannot read key points missing.json"),
        ("text_image", ["--source", "beach.png"], "has a source, .* this model makes whole images"),
        (
            "text_image",
            ["--image", "clock.png"],
            "--image 'clock.png' has no '@': write a picture's",
        ),
        ("inpaint", ["--box", "a bird@0,0,1,1"], "has no source, but this is an inpainting model"),
        ("text_box", ["--image", "clock.png@0,0,1,1"], "has images in its boxes, .* kind text"),
    ],
)
def test_a_wrong_request_is_one_sentence(model, options, message, capsys, monkeypatch):
    monkeypatch.chdir(pictures())
    path = str(kinds.converted(model))
    assert main(["generate", "a bird", "--model", path, *options, "--out", "o.png"]) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, lines[-1]), lines


def test_info_says_what_a_model_takes(capsys):
    for name, words in (
        ("text_image_inpaint", "--box (a phrase and its place), --image (a picture and its place), "
         "--source"),
        ("sem", "grounded by a semantic map (sem)"),
    ):  # fmt: skip
        assert main(["info", str(kinds.converted(name))]) == 0
        assert words in capsys.readouterr().out


# In batches.


@pytest.mark.parametrize("name", some(kinds.ALL, ("text_image_inpaint",)))
def test_a_batch_resumes_and_equals_single_images(name, tmp_path, capsys):
    folder = pictures()
    lines = [kinds.request(name) | {"id": str(n), "seed": 5 + n} for n in range(3)]
    lines[1].pop("seed")
    wrong = {"id": "wrong", **kinds.request(name), "prompt": "x", "map": "missing.png"}
    wrong |= {"source": "missing.png"} if name in kinds.INPAINTING else {}
    source = folder / f"{name}-{tmp_path.name}.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in (*lines, wrong)))
    out = tmp_path / "out"
    command = ["batch", str(source), "--out", str(out), "--model", str(kinds.converted(name))]
    command += ["--steps", "2", "--batch-size", "2", "--unit-lines", "2"]
    assert main(command) == 0
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in rejected] == [4]
    images = sorted((out / "images").rglob("*.png"))
    assert len(images) == 3
    recipe = read_recipe(images[0])
    for picture in recipe.layout.pictures.values():
        assert picture.path and picture.path.is_file() and picture.has_checksum
    made = images[0].read_bytes()
    for path in (out / "manifests").iterdir():
        path.unlink()
    assert main(command) == 0
    assert images[0].read_bytes() == made
    single = tmp_path / "single.png"
    assert main(["generate", "--from", str(images[0]), "--out", str(single)]) == 0
    ours, theirs = (np.asarray(Image.open(path), np.int32) for path in (single, images[0]))
    assert np.abs(ours - theirs).max() <= 1


def test_a_picture_in_memory_must_be_given_again(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    drawn = Layout("x", map=pixels)
    value = drawn.to_json()
    assert value["map"]["path"] is None and len(value["map"]["sha256"]) == 64
    read = Layout.from_json(value)
    assert read == drawn and read.map == Picture.of(pixels)
    with pytest.raises(ValueError, match="give the image again"):
        pipe("depth")([read], FAST)

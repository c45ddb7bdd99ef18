"""Pictures as values, what files they may be, and their pixels.

Maps are those of GLIGEN's inference code to the byte, reference images those of CLIP's processor.
"""

import hashlib
import json
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reground_jax.layout import Layout
from reground_jax.layout_kinds import check_pictures
from reground_jax.pictures import Picture, decoding
from reground_jax.pictures.pixels import map_pixels, reference_pixels, source_pixels
from tests.fixtures import fixtures

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (61, 84, 3), np.uint8)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def saved(folder: Path, image: Image.Image | np.ndarray, name: str = "a.png", **options) -> Path:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(folder / name, **options)
    return folder / name


def refusal(make) -> str:
    with pytest.raises(ValueError) as error:
        make()
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


# ---- the value


def test_pictures_of_equal_bytes_are_equal_wherever_they_lie(tmp_path):
    path = saved(tmp_path, NOISE)
    (tmp_path / "b.png").write_bytes(path.read_bytes())
    one, other = Picture.of(str(path)), Picture.of("b.png", tmp_path)
    assert one == other and hash(one) == hash(other) and one.path != other.path
    assert one.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert one != Picture.of(saved(tmp_path, NOISE[::-1], "c.png"))


def test_pictures_in_memory_are_equal_by_mode_size_and_pixels():
    array, image = Picture.of(NOISE), Picture.of(Image.fromarray(NOISE))
    assert array == image and array.path is None
    assert array != Picture.of(NOISE.transpose(1, 0, 2).copy())
    gray = NOISE[..., 0]
    assert Picture.of(gray) != Picture.of(np.stack([gray] * 3, -1))
    indexed = [Image.fromarray(gray, "L").convert("P") for _ in range(2)]
    indexed[1].putpalette(list(range(255, -1, -1)) * 3)  # other colors for the same indices
    assert Picture.of(indexed[0]) != Picture.of(indexed[1])


def test_an_image_in_memory_is_turned_upright_as_a_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image = Image.open(saved(tmp_path, NOISE, exif=exif))
    assert Picture.of(image) == Picture.of(np.rot90(NOISE, -1).copy())
    keyed = Image.fromarray(NOISE)
    keyed.info["transparency"] = RED
    assert Picture.of(keyed) != Picture.of(NOISE)


def test_an_image_in_memory_is_copied():
    array = NOISE.copy()
    picture = Picture.of(array)
    array[:] = 0
    np.testing.assert_array_equal(picture.open(), NOISE)
    picture.open().paste(RED, (0, 0, 84, 61))
    np.testing.assert_array_equal(picture.open(), NOISE)


def test_a_file_is_not_read_before_it_is_needed(tmp_path):
    picture = Picture.of(str(tmp_path / "later.png"))
    layout = Layout("a room", map=picture)
    saved(tmp_path, NOISE, "later.png")
    check_pictures(layout)


def test_relative_paths_are_relative_to_the_folder_or_to_the_working_directory(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert Picture.of("a.png").path == tmp_path / "a.png"
    assert Picture.of(Path("a.png"), "maps").path == tmp_path / "maps/a.png"
    assert Picture.of("/b/a.png", "maps").path == Path("/b/a.png")
    monkeypatch.setenv("HOME", "/home/me")
    assert Picture.of("~/a.png", "maps").path == Path("/home/me/a.png")


def test_a_picture_comes_back_from_json_and_pickles(tmp_path):
    picture = Picture.of(saved(tmp_path, NOISE))
    value = json.loads(json.dumps(picture.to_json()))
    assert set(value) == {"path", "sha256"}
    again = Picture.from_json(value)
    assert again == picture and again.path == picture.path
    again.check()
    assert pickle.loads(pickle.dumps(picture)) == picture == Picture.of(picture)
    memory = Picture.of(NOISE)
    assert Picture.from_json(memory.to_json()) == memory == pickle.loads(pickle.dumps(memory))


def test_an_image_in_memory_must_be_given_again(tmp_path):
    recorded = Picture.from_json(Picture.of(NOISE).to_json())
    assert "only the checksum was recorded: give the image again" in refusal(recorded.check)


def test_a_file_that_changed_since_it_was_recorded_is_refused(tmp_path):
    path = saved(tmp_path, NOISE)
    picture = Picture.of(path)
    recorded = Picture.from_json(picture.to_json())
    saved(tmp_path, NOISE[::-1])
    for stale in (picture, recorded):
        text = refusal(stale.check)
        assert f"picture {path} changed since its checksum was recorded" in text
        assert "restore the file, or give the picture again" in text
    Picture.of(path).check()


# ---- values that are no pictures


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (3, "picture is 3: give a path, a PIL image or a uint8 array"),
        (None, "picture is None: give a path"),
        ("", "picture is an empty path"),
        (NOISE / 255, r"picture is float64[61, 84, 3]: give a path, a PIL image or a uint8 array"),
        (NOISE[:0], "picture is uint8[0, 84, 3]: give a path"),
        (NOISE[..., :2], "picture is uint8[61, 84, 2]: give a path"),
        (NOISE[None], "picture is uint8[1, 61, 84, 3]: give a path"),
        ("https://host/a.png", "'https://host/a.png', a URL: download it, and give the file"),
        ("//host/share/a.png", "it may be on another machine: copy it to this one"),
        ("\\\\host\\share\\a.png", "it may be on another machine"),
        ("~other/a.png", "it may be on another machine"),
        ({}, "picture has neither a path nor a sha256"),
        ({"path": 3}, "path of picture is 3: it must be a string or null"),
        ({"path": "a.png", "sha256": "abc"}, "'abc': it must have 64 hexadecimal digits"),
        ({"path": "a.png", "sha": "0" * 64}, "field of picture 'sha' is unknown: did you mean"),
        ({"path": "//host/a.png", "sha256": "0" * 64}, "it may be on another machine"),
    ],
)
def test_a_value_that_is_no_picture_is_one_sentence(value, sentence):
    assert sentence in refusal(lambda: Picture.of(value))


# ---- files that cannot be read


def bad_files(folder: Path) -> dict[str, str]:
    """Name -> part of its error."""
    content = saved(folder, NOISE, "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    jpeg = saved(folder, NOISE, "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html>")
    # A PostScript program, which Pillow would let Ghostscript run.
    (folder / "program.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    for name, side in (("bomb", 60_000), ("large", 8193)):
        header = content[12:16] + side.to_bytes(4, "big") * 2 + content[24:29]
        checksum = zlib.crc32(header).to_bytes(4, "big")
        (folder / f"{name}.png").write_bytes(content[:12] + header + checksum + content[33:])
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    return {
        "gone.png": "there is no such file", "cut.png": "", "cut.jpg": "truncated",
        "empty.png": "not one that Pillow knows", "page.jpg": "not one that Pillow knows",
        "program.eps": "not one that Pillow knows", "bomb.png": "more than 67,108,864 pixels",
        "large.png": "more than 67,108,864 pixels", "folder.png": "it is a folder, not a file",
        "pipe.png": "it is a pipe, not a file",
    }  # fmt: skip


def test_a_file_that_cannot_be_read_is_one_sentence_with_its_name(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        text = refusal(Picture.of(tmp_path / name).check)
        assert f"cannot read picture {tmp_path / name}: " in text and reason in text
        layout = Layout("x", ["a cat"], [(0, 0, 1, 1)], id="x", images=[tmp_path / name])
        assert refusal(lambda: check_pictures(layout)).startswith("image 1 of layout 'x': cannot")  # noqa: B023


def test_a_file_of_too_many_bytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("reground_jax.pictures.MAX_BYTES", 1000)
    assert "it is larger than 1,000 bytes" in refusal(Picture.of(saved(tmp_path, NOISE)).check)


# ---- maps


@pytest.fixture(scope="module")
def original() -> dict[str, np.ndarray]:
    """Maps before and after the preprocessing of GLIGEN's inference code."""
    return dict(np.load(fixtures() / "original_map_preprocessing.npz"))


@pytest.mark.parametrize("kind", ["hed", "canny", "depth", "normal"])
def test_maps_are_prepared_as_by_the_original_code(kind, original, tmp_path):
    for file in (False, True):
        rgb, gray = original["rgb_in"], original["gray_in"]
        given = [saved(tmp_path, rgb, "rgb.png"), saved(tmp_path, gray)] if file else [rgb, gray]
        color, one = (map_pixels(Picture.of(value), kind) for value in given)
        np.testing.assert_array_equal(color, original["rgb_out"])
        np.testing.assert_array_equal(one, original["gray_out"][..., None].repeat(3, -1))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "LA", "RGBA", "I;16"])
def test_classes_are_those_of_the_original_code_in_every_mode(mode, original, tmp_path):
    labels = original["sem_in"]
    image = Image.fromarray(labels)
    if mode == "P":
        image = Image.frombytes("P", image.size, labels.tobytes())
        image.putpalette(RNG.integers(0, 256, 768, np.uint8).tolist())
        image.info["transparency"] = 0  # of the index, not of what is there
    elif mode == "I;16":
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = image.convert(mode)
    found = map_pixels(Picture.of(saved(tmp_path, image)), "sem")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, original["sem_out"])


def test_unlabeled_may_also_be_255_and_no_class_is_lost():
    labels = np.arange(152, dtype=np.uint8).repeat(152).reshape(152, 152)
    labels[:, 0] = 255
    found = map_pixels(Picture.of(labels), "sem", 152, 152)
    np.testing.assert_array_equal(found[:, 0], 0)
    np.testing.assert_array_equal(found[:, 1:], labels[:, 1:])


def test_sixteen_bits_of_depth_are_not_cut_to_white(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32))):
        found = map_pixels(Picture.of(image), "depth", 64, 64)
        np.testing.assert_array_equal(found[0, :, 0], np.rint(ramp[0] / 257))
    found = map_pixels(Picture.of(saved(tmp_path, ramp)), "depth", 64, 64)
    np.testing.assert_array_equal(found[0, :, 2], np.rint(ramp[0] / 257))


def test_a_palette_is_looked_up_in_a_depth_map(tmp_path):
    image = Image.fromarray(np.repeat([[0, 1]], 2, 0).astype(np.uint8), "P")
    image.putpalette([*RED, *BLUE])
    found = map_pixels(Picture.of(saved(tmp_path, image)), "depth", 2, 2)
    assert found.tolist() == [[list(RED), list(BLUE)]] * 2


def test_an_opaque_alpha_channel_is_no_obstacle():
    rgba = np.dstack([NOISE, np.full((61, 84), 255, np.uint8)])
    np.testing.assert_array_equal(
        map_pixels(Picture.of(rgba), "normal"), map_pixels(Picture.of(NOISE), "normal")
    )


def test_a_turned_map_is_read_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = Picture.of(saved(tmp_path, NOISE[::-1, ::-1].copy(), exif=exif))
    np.testing.assert_array_equal(
        map_pixels(turned, "depth", 8, 8), map_pixels(Picture.of(NOISE), "depth", 8, 8)
    )


HALF = np.dstack([NOISE, NOISE[..., 0]])


@pytest.mark.parametrize(
    ("image", "kind", "sentence"),
    [
        (HALF, "depth", "its pixels are partly transparent, but a map has a value everywhere"),
        (HALF, "sem", "its pixels are partly transparent"),
        (Image.fromarray(HALF).convert("LA"), "canny", "its pixels are partly transparent"),
        (
            Image.fromarray(NOISE[..., 0] / np.float32(255)),
            "depth",
            "its pixels have mode 'F', whi",
        ),
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "depth", "have mode 'I', which does"),
        (NOISE, "sem", "its pixels are colors, but a semantic map has labels"),
        (np.full((4, 4), 200, np.uint8), "sem", "it has the label 200, but this model has 152"),
        (np.full((4, 4), 152, np.uint8), "sem", "ADE20K's, 1 to 150, and 0 for unlabeled"),
        (Image.new("1", (4, 4)), "sem", "its pixels have mode 1: give labels as 8-bit gray"),
    ],
)
def test_a_picture_that_is_no_map_of_its_kind_is_one_sentence(image, kind, sentence):
    text = refusal(lambda: map_pixels(Picture.of(image), kind))
    assert f"cannot be a {kind} map: " in text and sentence in text


def test_a_smaller_model_has_fewer_classes():
    labels = np.full((4, 4), 12, np.uint8)
    assert "the label 12, but this model has 12 classes" in refusal(
        lambda: map_pixels(Picture.of(labels), "sem", classes=12)
    )
    assert "kind of map 'edges' is unknown" in refusal(
        lambda: map_pixels(Picture.of(labels), "edges")
    )


def test_a_transparent_palette_or_key_is_seen(tmp_path):
    image = Image.fromarray(NOISE[..., 0], "P")
    image.putpalette(list(range(256)) * 3)
    paths = [
        saved(tmp_path, image, "p.png", transparency=7),
        saved(tmp_path, np.full((4, 4), 7, np.uint16), "deep.png", transparency=7),
        saved(tmp_path, Image.new("RGB", (4, 4), RED), "key.png", transparency=RED),
    ]
    for path in paths:
        assert "partly transparent" in refusal(lambda: map_pixels(Picture.of(path), "depth"))  # noqa: B023


# ---- reference images and sources


@pytest.mark.parametrize("size", [(301, 450), (450, 301), (224, 224), (61, 84), (1000, 225)])
@pytest.mark.parametrize("side", [224, 28])
def test_reference_images_are_prepared_as_by_clips_processor(size, side):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    options = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    image = Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8))
    found = reference_pixels(Picture.of(image), side)
    assert found.dtype == np.float32
    bare = CLIPImageProcessorPil(**options, do_rescale=False, do_normalize=False)
    expected = np.moveaxis(np.asarray(bare(image)["pixel_values"][0]), 0, -1)
    mean, std = (np.array(getattr(bare, name)) for name in ("image_mean", "image_std"))
    np.testing.assert_array_equal(np.rint((found * std + mean) * 255).astype(np.uint8), expected)
    whole = CLIPImageProcessorPil(**options)(image)["pixel_values"][0]
    np.testing.assert_allclose(found, np.moveaxis(np.asarray(whole), 0, -1), rtol=0, atol=1e-6)


def test_what_is_transparent_in_a_reference_is_white_whatever_lies_below():
    cut = np.zeros((8, 8, 4), np.uint8)  # black, and fully transparent
    white = reference_pixels(Picture.of(np.full((8, 8, 3), 255, np.uint8)), 8)
    np.testing.assert_array_equal(reference_pixels(Picture.of(cut), 8), white)


def test_a_reference_of_extreme_shape_is_refused_before_it_is_enlarged():
    text = refusal(lambda: reference_pixels(Picture.of(np.zeros((1, 40_000), np.uint8))))
    assert "is 40000 x 1 pixels, and only its center square would be read: crop it" in text


def test_a_source_is_cut_to_the_ratio_of_the_image_and_resized(tmp_path):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200  # the center square
    assert (source_pixels(Picture.of(wide), 16, 16) == 200).all()
    assert (source_pixels(Picture.of(wide.transpose(1, 0, 2).copy()), 16, 16) == 200).all()
    found = source_pixels(Picture.of(wide), 8, 16)  # 80 of 100 columns: 10 of 40 dark ones on each
    assert found.shape == (8, 16, 3) and found[0, 8, 0] == 200 and found[0, 1, 0] == 0
    same = source_pixels(Picture.of(NOISE), 61, 84)
    np.testing.assert_array_equal(same, NOISE)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = source_pixels(Picture.of(saved(tmp_path, NOISE, exif=exif)), 84, 61)
    np.testing.assert_array_equal(turned, np.rot90(NOISE, -1))


def test_a_square_source_shows_what_a_map_of_it_shows(original):
    np.testing.assert_array_equal(
        source_pixels(Picture.of(original["rgb_in"]), 512, 512), original["rgb_out"]
    )


def test_a_picture_without_a_defined_white_is_refused_by_name(tmp_path):
    path = saved(tmp_path, np.zeros((4, 4), np.float32), "a.tif")
    for read in (reference_pixels, lambda picture: source_pixels(picture, 8, 8)):
        text = refusal(lambda: read(Picture.of(path)))  # noqa: B023
        assert f"cannot use picture {path}: its pixels have mode 'F'" in text


def test_only_formats_that_pillow_decodes_itself_are_read():
    assert {"EPS", "WMF", "IPTC"}.isdisjoint(decoding.FORMATS)

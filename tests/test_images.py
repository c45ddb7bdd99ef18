"""uint8 conversion and PNGs that carry their recipe."""

import json
import os
import stat
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from reground_jax.images import Recipe, read_recipe, save_png, to_uint8
from reground_jax.layout import Layout
from reground_jax.settings import Settings

LAYOUT = Layout('ein Bär 熊 "quoted"', ["a bear"], [(0.1, 0.2, 0.30000000000000004, 0.4)])
RECIPE = Recipe(LAYOUT, Settings(gamma=(0.3, 0.0, 0.7)), seed=2**32 - 1, checkpoint="some/model")
IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def test_levels_survive_the_way_to_floats_and_back():
    levels = np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_uint8(levels / 127.5 - 1), levels)
    np.testing.assert_array_equal(to_uint8(levels / 255, value_range="0..1"), levels)


def test_values_are_rounded_and_clipped():
    values = np.array([-1.5, -1, 0.6 / 255, 0.4 / 255, 1, 7], np.float32).reshape(1, 1, 6, 1)
    unsigned = to_uint8(values, value_range="0..1").ravel()
    np.testing.assert_array_equal(unsigned, [0, 0, 1, 0, 255, 255])  # truncation gives 0 for 0.6
    assert to_uint8(np.zeros((1, 1, 1, 3), np.float32)).ravel()[0] == 128  # 127.5, half to even


def test_uint8_equals_diffusers_bit_for_bit():
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)  # 6144 values
    expected = processor.postprocess(torch.from_numpy(images.transpose(0, 3, 1, 2)), "pil")
    ours = to_uint8(images)
    np.testing.assert_array_equal(ours, np.stack([np.asarray(image) for image in expected]))


def test_bfloat16_images_are_converted_in_float32():
    images = np.linspace(-1, 1, 48).astype(ml_dtypes.bfloat16).reshape(1, 4, 4, 3)
    np.testing.assert_array_equal(to_uint8(images), to_uint8(images.astype(np.float32)))


def test_nan_is_an_error_that_names_the_image():
    images = np.zeros((3, 2, 2, 3), np.float32)
    images[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="image 2 of 3 holds NaN or infinity.*--check") as error:
        to_uint8(images, dtype="float32")
    assert "use dtype" not in str(error.value)  # it is float32 already
    with pytest.raises(ValueError, match="or use dtype='float32'"):
        to_uint8(images, dtype="bfloat16")
    with pytest.raises(ValueError, match="value_range '-1' is unknown"):
        to_uint8(images, value_range="-1")


def test_a_png_keeps_its_pixels_and_gives_its_recipe_back(tmp_path: Path):
    path = tmp_path / "new folder" / "image.png"
    save_png(path, IMAGE, RECIPE)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), IMAGE)
    assert read_recipe(path) == RECIPE


def test_the_recipe_is_plain_json_in_a_text_chunk_that_other_programs_show(tmp_path: Path):
    save_png(tmp_path / "image.png", Image.fromarray(IMAGE), RECIPE)
    with Image.open(tmp_path / "image.png") as picture:
        value = json.loads(picture.info["reground"])
    assert value["layout"]["prompt"] == LAYOUT.prompt
    assert value["settings"]["gamma"] == [0.3, 0.0, 0.7]
    assert value["seed"] == 2**32 - 1  # the largest seed


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch):
    path = tmp_path / "image.png"
    save_png(path, IMAGE, RECIPE)
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_png(path, 255 - IMAGE, RECIPE)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["image.png"]


def test_a_file_is_replaced_and_never_written_in_place(tmp_path: Path):
    path, old = tmp_path / "image.png", tmp_path / "old.png"
    save_png(path, IMAGE, RECIPE)
    os.link(path, old)  # still names the old content unless that was overwritten in place
    save_png(path, 255 - IMAGE, RECIPE)
    np.testing.assert_array_equal(np.asarray(Image.open(old)), IMAGE)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), 255 - IMAGE)


def test_a_written_file_has_the_users_ordinary_permissions(tmp_path: Path):
    save_png(tmp_path / "image.png", IMAGE)
    (tmp_path / "other").touch()
    mode = stat.S_IMODE((tmp_path / "image.png").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_only_png_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match=r"image.jpg: only PNG keeps the recipe exactly; name it"):
        save_png(tmp_path / "image.jpg", IMAGE, RECIPE)


def test_files_without_a_recipe_are_clear_errors(tmp_path: Path):
    save_png(tmp_path / "plain.png", IMAGE)
    with pytest.raises(ValueError, match="plain.png has no 'reground' text chunk: .* original PNG"):
        read_recipe(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="cannot read image .*absent.png: No such file"):
        read_recipe(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match="text.png is not a PNG image"):
        read_recipe(tmp_path / "text.png")
    save_png(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot read image .*cut.png"):
        read_recipe(tmp_path / "cut.png")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "is not JSON: Expecting"),
        ("[]", "recipe has format None, this version reads 1"),
        (json.dumps(RECIPE.to_json() | {"format": 2}), "recipe has format 2"),
        (json.dumps({"format": 1, "seed": 0}), "recipe has no layout, settings"),
        (json.dumps(RECIPE.to_json() | {"settings": {"wiring": "x"}}), "wiring 'x' is unknown"),
    ],
)
def test_a_damaged_recipe_names_the_file_and_the_fault(tmp_path: Path, text: str, sentence: str):
    info = PngImagePlugin.PngInfo()
    info.add_text("reground", text)
    Image.fromarray(IMAGE).save(tmp_path / "image.png", pnginfo=info)
    with pytest.raises(ValueError) as error:
        read_recipe(tmp_path / "image.png")
    assert "image.png" in str(error.value) and sentence in str(error.value)

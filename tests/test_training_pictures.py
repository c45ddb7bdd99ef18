"""Training images: upright, 8-bit, on white; and no bad file stops a run."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reground_jax.readers import Rejected
from reground_jax.readers.annotated import Annotated, cropped
from reground_jax.readers.coco import read_coco
from reground_jax.readers.jsonl import read_jsonl
from reground_jax.readers.pictures import read_picture
from reground_jax.training import data as training_data
from reground_jax.training.data import Files

CASES = Path(__file__).parent / "data/cases"
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def seen(path: Path, **fields) -> np.ndarray:
    entry = Annotated(path, ("x",), (), (), **fields)
    return cropped(entry, "x", size=8)[0].astype(int)


def halves(path: Path, orientation: int) -> Path:
    """16x8 pixels as stored, the left half red and the right half blue."""
    image = Image.new("RGB", (16, 8), BLUE)
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


# ---- orientation


def test_a_phone_picture_is_turned_upright_and_its_boxes_refer_to_the_turned_one():
    entry = next(read_jsonl(CASES / "training-exif/turned.jsonl"))
    assert isinstance(entry, Annotated)
    image, layout = cropped(entry, "x", size=8)
    # The box of "a red thing" is the upper half. JPEG colors are off by a few levels of 255.
    assert layout.boxes == ((0, 0, 1, 0.5),) and layout.phrases == ("a red thing",)
    np.testing.assert_allclose(image[:3], np.full((3, 8, 3), RED), atol=6)
    np.testing.assert_allclose(image[5:], np.full((3, 8, 3), BLUE), atol=6)


# (orientation, color in the first row and column of the upright picture, by EXIF's table)
@pytest.mark.parametrize(
    ("orientation", "row", "column"),
    [
        (1, (RED, BLUE), (RED, RED)), (2, (BLUE, RED), (BLUE, BLUE)),
        (3, (BLUE, RED), (BLUE, BLUE)), (4, (RED, BLUE), (RED, RED)),
        (5, (RED, RED), (RED, BLUE)), (6, (RED, RED), (RED, BLUE)),
        (7, (BLUE, BLUE), (BLUE, RED)), (8, (BLUE, BLUE), (BLUE, RED)),
    ],
)  # fmt: skip
def test_every_orientation_is_followed(orientation, row, column, tmp_path):
    image = read_picture(halves(tmp_path / "a.png", orientation))
    assert image.size == ((16, 8) if orientation < 5 else (8, 16))
    assert (image.getpixel((0, 0)), image.getpixel((image.width - 1, 0))) == row
    assert (image.getpixel((0, 0)), image.getpixel((0, image.height - 1))) == column


def test_a_picture_that_agrees_with_its_annotations_only_as_stored_is_not_turned(tmp_path):
    path = halves(tmp_path / "0.png", 6)
    content = {
        "images": [
            {"id": 0, "file_name": "0.png", "width": 16, "height": 8},  # as stored
            {"id": 1, "file_name": "0.png", "width": 8, "height": 16},  # as seen
        ],
        "annotations": [],
        "categories": [],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    stored, upright = read_coco(tmp_path / "instances.json", None, tmp_path)
    assert not isinstance(stored, Rejected) and not isinstance(upright, Rejected)
    flat, turned = (cropped(entry, "", size=8)[0] for entry in (stored, upright))
    assert tuple(flat[4, 0]) == RED and tuple(flat[4, 7]) == BLUE
    assert tuple(turned[0, 4]) == RED and tuple(turned[7, 4]) == BLUE
    # Half the annotated size, as in downscaled datasets: the aspect ratio decides, not the size.
    assert seen(path, annotated_size=(32, 16))[4, 0].tolist() == list(RED)
    # Upside down fits either way, so it is turned.
    assert seen(halves(tmp_path / "1.png", 3), annotated_size=(16, 8))[4, 0].tolist() == list(BLUE)


def test_damaged_metadata_does_not_reject_a_picture(tmp_path):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xffxx")
    assert (seen(tmp_path / "a.png") == RED).all()


# ---- pixels


def test_sixteen_bits_become_eight_and_are_not_cut_to_white(tmp_path):
    ramp = seen(CASES / "training-16-bit/grey16.png")
    assert ramp.mean() == pytest.approx(127.5, abs=1)  # a ramp of 0..65535
    values = np.array([[0, 128, 257, 25700, 32767, 65535]], np.uint16)  # rounded, 257 to 1
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = np.asarray(read_picture(tmp_path / name))
        assert pixels[0, :, 0].tolist() == [0, 0, 1, 100, 127, 255], name


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_a_mode_without_a_defined_white_is_rejected_by_name(mode, dtype, tmp_path):
    Image.fromarray(np.full((4, 4), 7, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=rf"a.tif: its pixels have mode '{mode}'.* 8 or 16 bits"):
        seen(tmp_path / "a.tif")


def test_what_is_transparent_is_white_whatever_lies_below(tmp_path):
    left = np.zeros((8, 8), np.uint8)
    left[:, :4] = 255  # opaque
    rgba = Image.new("RGB", (8, 8), BLUE)
    rgba.putalpha(Image.fromarray(left))
    rgba.save(tmp_path / "rgba.png")
    gray = Image.new("L", (8, 8), 0)
    gray.putalpha(Image.fromarray(left))
    gray.save(tmp_path / "la.png")
    palette = Image.fromarray(left // 255).convert("P")
    palette.putpalette([*RED, *BLUE])
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    key = Image.new("RGB", (8, 8), RED)
    key.paste(BLUE, (0, 0, 4, 8))
    key.save(tmp_path / "key.png", transparency=RED)
    deep = Image.fromarray(np.where(left == 255, 0, 7).astype(np.uint16))
    deep.save(tmp_path / "deep.png", transparency=7)
    for name, color in {
        "rgba.png": BLUE, "la.png": (0, 0, 0), "p.png": BLUE, "p.gif": BLUE, "key.png": BLUE,
        "deep.png": (0, 0, 0),
    }.items():  # fmt: skip
        pixels = np.asarray(read_picture(tmp_path / name))
        assert (pixels[:, :4] == color).all() and (pixels[:, 4:] == WHITE).all(), name
    rgba.putalpha(128)  # half: between blue and white
    rgba.save(tmp_path / "half.png")
    assert read_picture(tmp_path / "half.png").getpixel((0, 0)) == (127, 127, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_white_and_black_stay_so_in_every_mode(mode, tmp_path):
    image = Image.new("RGB", (8, 8), "black")
    image.paste(WHITE, (0, 0, 4, 8))
    suffix = {"CMYK": "tif", "YCbCr": "tif"}.get(mode, "png")
    # Pillow 12 cannot read what it writes as YCbCr without compression.
    options = {"compression": "tiff_lzw"} if suffix == "tif" else {}
    image.convert(mode).save(tmp_path / f"a.{suffix}", **options)
    pixels = np.asarray(read_picture(tmp_path / f"a.{suffix}"))
    assert pixels.shape == (8, 8, 3)
    assert (pixels[:, :4] == 255).all() and (pixels[:, 4:] == 0).all()


# ---- files that are not pictures


def bad_files(folder: Path) -> dict[str, str]:
    """Name -> part of its error."""
    whole = folder / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(whole)
    content = whole.read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html>")
    header = content[:16] + (60000).to_bytes(4, "big") * 2 + content[24:]
    (folder / "bomb.png").write_bytes(header)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    return {
        "cut.png": "", "cut.jpg": "", "empty.png": "not one that Pillow knows", "bomb.png": "",
        "page.jpg": "not one that Pillow knows", "pipe.png": "not a regular file",
        "folder.png": "not a regular file", "gone.png": "does not exist",
    }  # fmt: skip


def test_a_file_that_is_not_a_picture_is_one_sentence_with_its_name(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=f"cannot read picture .*{name}: .*{reason}"):
            seen(tmp_path / name)


def test_a_bad_picture_never_stops_a_run_and_is_named_once(tmp_path):
    names = ["whole.png", *bad_files(tmp_path)]
    entries = [Annotated(tmp_path / name, ("x",), (), ()) for name in names]
    files = Files(entries, image_size=8, seed=1)
    with pytest.warns(UserWarning, match="using another image instead") as caught:
        first = files.batch(0, 2 * len(names))  # two epochs
    assert all(example.layout.id == "whole.png" for example in first)
    told = [str(warning.message) for warning in caught]
    # The first five, then at every doubling: the eighth.
    assert len(told) == 6 and "(8 unreadable so far)" in told[-1]
    assert files.unreadable == {entry.path for entry in entries[1:]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = files.batch(0, 2 * len(names))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)


def test_readable_pictures_keep_their_order(tmp_path):
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    entries = [Annotated(tmp_path / f"{i}.png", (), (), ()) for i in range(6)]
    whole = [e.layout.id for e in Files(entries, image_size=8, seed=3).batch(0, 18)]
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="2.png"):
        fewer = [e.layout.id for e in Files(entries, image_size=8, seed=3).batch(0, 18)]
    assert [b for a, b in zip(whole, fewer, strict=True) if a != "2.png"] == [
        a for a in whole if a != "2.png"
    ]
    assert "2.png" not in fewer


def test_a_folder_without_the_pictures_is_an_error(tmp_path):
    entries = [Annotated(tmp_path / f"{i}.png", (), (), ()) for i in range(40)]
    with (
        pytest.warns(UserWarning, match="does not exist"),
        pytest.raises(ValueError, match="16 images in a row could not be used.*the image folder"),
    ):
        Files(entries, image_size=8).batch(0, 1)


def test_a_caption_that_is_not_a_string_is_refused_by_the_reader(tmp_path):
    line = {"image": "a.png", "caption": ["a dog", 5]}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    (entry,) = read_jsonl(tmp_path / "train.jsonl")
    assert isinstance(entry, Rejected) and "['a dog', 5]: it must be a string" in entry.reason


# ---- the order of examples


def test_an_epoch_is_shuffled_once_and_reproducibly(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    # All entries share one file, so captions tell them apart.
    entries = [Annotated(tmp_path / "a.png", (str(i),), (), ()) for i in range(10)]
    files, made = Files(entries, image_size=8, seed=5), []
    generator = np.random.default_rng

    def counted(seed):
        made.append(seed)
        return generator(seed)

    monkeypatch.setattr(training_data.np.random, "default_rng", counted)
    shown = [int(e.layout.prompt) for index in range(5) for e in files.batch(index, 4)]
    assert made == [(5, 0), (5, 1)]  # 20 examples of two epochs
    expected = [generator((5, epoch)).permutation(10).tolist() for epoch in (0, 1)]
    assert shown == expected[0] + expected[1]


# ---- flips


def test_half_of_the_examples_are_mirrored_with_their_boxes(tmp_path):
    image = Image.new("RGB", (8, 8), BLUE)
    image.paste(RED, (0, 0, 4, 8))
    image.save(tmp_path / "a.png")
    entry = Annotated(tmp_path / "a.png", ("x",), ("red",), ((0.0, 0.25, 0.5, 1.0),))
    plain, flipped = (Files([entry], image_size=8, flip=flip) for flip in (False, True))
    (as_it_is,) = plain.batch(0, 1)
    seen = flipped.batch(0, 64)
    mirrored = [e for e in seen if tuple(e.image[0, 0]) == BLUE]
    assert 20 < len(mirrored) < 44
    for example in mirrored:
        np.testing.assert_array_equal(example.image, as_it_is.image[:, ::-1])
        assert example.layout.boxes == ((0.5, 0.25, 1.0, 1.0),)
    assert {e.layout.boxes for e in seen} == {as_it_is.layout.boxes, ((0.5, 0.25, 1.0, 1.0),)}
    again = flipped.batch(1, 32)  # the same positions, asked for in another way
    assert [e.layout for e in again] == [e.layout for e in seen[32:]]

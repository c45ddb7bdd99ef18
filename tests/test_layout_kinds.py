"""Layouts with images, weights, key points, a map or a source, and which models take them."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reground_jax import draw
from reground_jax.batch.index import Source, build_index
from reground_jax.conditioning import distinct_texts
from reground_jax.draw import draw_boxes, draw_layout, phrase_colors
from reground_jax.images import Recipe, encode_png, read_recipe
from reground_jax.kinds import KINDS
from reground_jax.layout import Layout
from reground_jax.layout_kinds import check_kind, check_pictures
from reground_jax.pictures import Picture
from reground_jax.readers.lines import parse_line
from reground_jax.settings import Settings
from reground_jax.words import check_words

RED, GREEN = (np.full((8, 8, 3), color, np.uint8) for color in ((250, 0, 0), (0, 250, 0)))
LEFT, RIGHT, STYLE = (0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75), (0.0, 1.0, 0.0, 1.0)
PERSON = [(0.5, 0.25), (0.75, 0.5), *[None] * 15]


def full(**fields: Any) -> Layout:
    """A layout of kind text_image: a phrase, an image, both, and a style."""
    value: dict[str, Any] = {
        "prompt": "a red ball", "phrases": ["a red ball", None, "a box", ""],
        "boxes": [LEFT, RIGHT, RIGHT, STYLE], "images": [None, RED, GREEN, GREEN],
        "phrase_weights": 0.5, "image_weights": [1, 1, 0.25, 1], "id": "x",
    }  # fmt: skip
    return Layout(**value | fields)


# ---- the fields


def test_a_box_has_a_phrase_or_an_image_or_both():
    layout = full()
    assert layout.phrases == ("a red ball", None, "a box", None)
    assert layout.text_masks == (0.5, 0.0, 0.5, 0.0)
    assert layout.image_masks == (0.0, 1.0, 0.25, 1.0)
    assert layout.image_weights == (1.0, 1.0, 0.25, 1.0) and layout.phrase_weights == 0.5
    assert Layout("x", boxes=[LEFT], images=[RED]).phrases == (None,)
    plain = Layout("x", ["a cat"], [LEFT])
    assert (plain.text_masks, plain.image_masks) == ((1.0,), (0.0,))
    assert Layout("x", ["a cat"], [LEFT], images=[None]) == plain
    assert list(layout.pictures) == ["image 2", "image 3", "image 4"] and not plain.pictures


def test_layouts_come_back_equal_from_json_without_the_fields_that_are_not_given(tmp_path):
    Image.fromarray(RED).save(tmp_path / "red.png")
    named: Any = tmp_path / "red.png"
    for layout in (
        full(), full(images=[named] * 4), Layout("x", map=named), Layout("x", map=GREEN),
        Layout("x", ["a cat"], [LEFT], source=named), Layout("x", ["a cat"], [LEFT]),
    ):  # fmt: skip
        value = json.loads(json.dumps(layout.to_json()))
        again = Layout.from_json(value)
        assert again == layout and hash(again) == hash(layout)
        assert set(value) == {f.name for f in dataclasses.fields(layout)} - {
            name for name in ("id", "tokens", "images", "phrase_weights", "image_weights",
                              "keypoints", "map", "source") if getattr(layout, name) is None
        }  # fmt: skip
    assert full() != full(images=[None, GREEN, GREEN, GREEN])
    assert dataclasses.replace(full(), prompt="x").images == full().images


def test_pictures_of_a_layout_file_are_relative_to_it(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    Image.fromarray(RED).save(tmp_path / "sub/red.png")
    value = {"prompt": "x", "id": "x", "phrases": [None], "boxes": [LEFT], "images": ["red.png"]}
    for name, content in (("one.json", value), ("all.json", [value, value])):
        (tmp_path / "sub" / name).write_text(json.dumps(content))
        for layout in Layout.load_all(tmp_path / "sub" / name):
            check_pictures(layout)
            assert layout.pictures["image 1"].path == tmp_path / "sub/red.png"
    (tmp_path / "sub/lines.jsonl").write_text(json.dumps(value) + "\n")
    monkeypatch.chdir(tmp_path)
    source = Source("sub/lines.jsonl", "")
    rules = {"max_boxes": 30, "seeds": 1, "kind": "text_image"}
    index = build_index(source, None, rules=rules, strict=True)
    (line,) = index.read(source, 0, 1)
    assert line is not None
    paths = {name: picture.path for name, picture in line.layout.pictures.items()}
    assert paths == {"image 1": tmp_path / "sub/red.png"}
    assert Source("gs://bucket/lines.jsonl", "").folder is None
    line = parse_line(json.dumps(value).encode())
    assert line is not None and line.layout.pictures["image 1"].path == tmp_path / "red.png"


def test_only_some_boxes_keep_all_that_belongs_to_them():
    layout = full(tokens=[[1], [2], [3], [4]]).only([2, 0])
    assert layout == full(
        phrases=["a box", "a red ball"], boxes=[RIGHT, LEFT], images=[GREEN, None],
        image_weights=[0.25, 1], tokens=[[3], [1]],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"images": [RED]}, "layout 'x' has 1 image and 4 boxes: give one per box, or None for a"),
        ({"images": "a.png"}, "images of layout 'x' are 'a.png': give a list with one per box"),
        ({"images": [None, 3, RED, RED]}, "image 2 of layout 'x' is 3: give a path, a PIL image"),
        ({"images": [None, None, RED, RED]}, "box 2 of layout 'x' has neither a phrase nor an im"),
        ({"images": [None] * 4}, "phrase 2 of layout 'x' is None: a phrase must be a nonempty"),
        ({"images": None}, "phrase 2 of layout 'x' is None: a phrase must be a nonempty string"),
        ({"phrases": ["a", None]}, "layout 'x' has 2 phrases and 4 boxes"),
        ({"phrases": ["a", None, 3, None]}, "phrase 3 of layout 'x' is 3: a phrase must be"),
        ({"phrase_weights": -1}, "phrase_weights of layout 'x' are -1: give one number of at"),
        ({"image_weights": [1, 1, 1, -0.5]}, "image_weights of layout 'x' are [1, 1, 1, -0.5]: g"),
        ({"image_weights": [1, 1]}, "layout 'x' has 2 numbers in image_weights and 4 boxes: give"),
        ({"image_weights": float("nan")}, "a number of image_weights of layout 'x' is nan: give"),
        ({"image_weights": "1"}, "a number of image_weights of layout 'x' is '1', which is not a"),
        ({"map": 3}, "map of layout 'x' is 3: give a path"),
        ({"source": ["a.png"]}, "source of layout 'x' is ['a.png']: give a path"),
        ({"source": "https://host/a.png"}, "a URL: download it, and give the file"),
        ({"map": "//host/a.png"}, "which is not opened, because it may be on another machine"),
    ],
)  # fmt: skip
def test_a_bad_field_is_one_sentence_with_the_layout_the_rule_and_the_way_out(fields, sentence):
    with pytest.raises(ValueError) as error:
        full(**fields)
    assert sentence in str(error.value) and "\n" not in str(error.value)


# ---- recipes of strangers


def with_map(value: Any) -> bytes:
    recipe = Recipe(Layout("x", map=RED), Settings(), 0).to_json()
    recipe["layout"]["map"] = value
    return json.dumps(recipe).encode()


def test_a_recipe_names_pictures_and_their_checksums(tmp_path):
    Image.fromarray(RED).save(tmp_path / "red.png")
    layout = Layout("x", map=tmp_path / "red.png")
    (tmp_path / "made.png").write_bytes(encode_png(GREEN, Recipe(layout, Settings(), 3)))
    recipe = read_recipe(tmp_path / "made.png")
    assert recipe.layout == layout
    check_pictures(recipe.layout)
    Image.fromarray(GREEN).save(tmp_path / "red.png")
    again = read_recipe(tmp_path / "made.png")
    with pytest.raises(
        ValueError, match="map of the layout .* changed since its checksum was reco"
    ):
        check_pictures(again.layout)


@pytest.mark.parametrize(
    "path", ["//host/share/a.png", "\\\\host\\a.png", "http://host/a.png", "~nobody/a.png"]
)
def test_a_recipe_cannot_lead_to_another_machine(path):
    value = json.loads(with_map({"path": path, "sha256": "0" * 64}))
    with pytest.raises(ValueError, match="another machine|a URL"):
        Recipe.from_json(value)


def test_a_recipe_without_a_checksum_is_not_followed():
    for value in ("/a.png", {"path": "/a.png"}):
        with pytest.raises(ValueError, match="map of .* has no sha256: the recipe was edited"):
            Recipe.from_json(json.loads(with_map(value)))


def test_a_recipe_of_an_image_in_memory_asks_for_the_image():
    recipe = Recipe.from_json(json.loads(with_map(Picture.of(RED).to_json())))
    with pytest.raises(ValueError, match="only the checksum was recorded: give the image again"):
        check_pictures(recipe.layout)


# ---- kinds


TEXT = Layout("x", ["a cat"], [LEFT], id="x")
MAPPED, POSED = Layout("x", id="x", map=RED), Layout("x", id="x", keypoints=[PERSON])
FILLED = dataclasses.replace(TEXT, source=RED)


def test_every_kind_takes_what_it_is_grounded_by():
    for kind in KINDS:
        layouts = {"text": [TEXT, Layout("x")], "text_image": [TEXT, full(), Layout("x")],
                   "keypoint": [POSED, Layout("x")]}  # fmt: skip
        for layout in layouts.get(kind, [MAPPED]):
            check_kind(layout, kind)
    for kind in ("text", "text_image"):
        check_kind(FILLED, kind, inpainting=True)


@pytest.mark.parametrize(
    ("layout", "kind", "inpainting", "sentence"),
    [
        (MAPPED, "text", False, "layout 'x' has a map, but this model is grounded by text in boxes "
         "(kind text): leave it out, or use a checkpoint of kind hed, canny, depth, normal, sem"),
        (MAPPED, "keypoint", False, "has a map, but this model is grounded by the key points of"),
        (TEXT, "depth", False, "layout 'x' has boxes, but this model is grounded by a depth map "
         "(kind depth): leave them out, or use a checkpoint of kind text, text_image"),
        (TEXT, "keypoint", False, "has boxes, but this model is grounded by the key points"),
        (full(), "text", False, "has images in its boxes, but this model is grounded by text in "
         "boxes (kind text): leave them out, or use a checkpoint of kind text_image"),
        (full(images=None, phrases=["a"] * 4), "text", False, "has phrase_weights, but this model"),
        (POSED, "text_image", False, "layout 'x' has key points, but this model is grounded by te"),
        (POSED, "sem", False, "has key points, but this model is grounded by a semantic map"),
        (Layout("x", id="x"), "canny", False, "layout 'x' has no map, but this model is grounded "
         "by a map of edges (kind canny): it needs a map; give the path of its picture"),
        (FILLED, "text", False, "layout 'x' has a source, the picture whose boxes are filled, but "
         "this model makes whole images: leave it out, or use an inpainting checkpoint"),
        (TEXT, "text", True, "layout 'x' has no source, but this is an inpainting model, which"),
        (Layout("x", id="x", source=RED), "text", True, "has no box with an area, but an inpaint"),
        (Layout("x", ["a"], [STYLE], source=RED), "text", True, "has no box with an area"),
    ],
)  # fmt: skip
def test_what_a_model_does_not_read_is_an_error_that_names_both(layout, kind, inpainting, sentence):
    with pytest.raises(ValueError) as error:
        check_kind(layout, kind, inpainting)
    assert sentence in str(error.value) and "\n" not in str(error.value)


# ---- boxes without a phrase, elsewhere


def test_a_box_without_a_phrase_has_no_text_and_no_words():
    assert distinct_texts([full(negative_prompt="bad")]) == ["a red ball", "bad", "a box"]
    check_words(full(prompt="a red ball on a box"))
    with pytest.raises(ValueError, match="phrase 3 of layout 'x', 'a box', is not in the prompt"):
        check_words(full())


# ---- drawings


def pixel(picture: Image.Image, x: float, y: float) -> tuple[int, ...]:
    return np.asarray(picture)[round(y * 511), round(x * 511)].tolist()


def test_reference_images_are_drawn_in_their_boxes_and_at_a_style():
    panel = draw_layout(full(boxes=[LEFT, RIGHT, (0.25, 0.0, 0.75, 0.2), STYLE]))
    assert pixel(panel, 0.75, 0.5) == RED[0, 0].tolist()
    assert pixel(panel, 0.5, 0.125) == GREEN[0, 0].tolist()
    assert pixel(panel, 0.1, 0.85) == GREEN[0, 0].tolist()  # above the corner of the style
    assert phrase_colors(["a", None, "b"]) == {
        "a": draw.PALETTE[0], None: draw.MUTED, "b": draw.PALETTE[1]
    }  # fmt: skip
    plain = draw_boxes(np.zeros((512, 512, 3), np.uint8), full())
    assert RED[0, 0].tolist() not in np.asarray(plain).reshape(-1, 3).tolist()


def test_persons_are_drawn_on_panels_and_images():
    layout = Layout("x", keypoints=[[(0.25, 0.5)] * 5 + [(0.75, 0.5)] * 12])
    for picture in (draw_layout(layout), draw_boxes(np.zeros((512, 512, 3), np.uint8), layout)):
        found = (np.asarray(picture) == draw._rgb(draw.PALETTE[0])).all(-1)
        assert found[256, 128] and found[256, 384] and not found[100].any()


def test_a_map_fills_the_panel_and_a_source_is_veiled_where_it_is_filled():
    assert (np.asarray(draw_layout(MAPPED))[1:-1, 1:-1] == RED[0, 0]).all()
    panel = draw_layout(FILLED)
    assert pixel(panel, 0.75, 0.5) == RED[0, 0].tolist()
    assert pixel(panel, 0.25, 0.5)[1] > 100  # lighter
    labels = np.repeat([[1, 2]], 2, 0).astype(np.uint8)
    panel = draw_layout(Layout("x", map=labels))
    colors = [pixel(panel, x, 0.5) for x in (0.1, 0.9)]
    assert min(max(color) for color in colors) > 150 and colors[0] != colors[1]


def test_a_picture_that_is_gone_does_not_spoil_a_figure(tmp_path):
    gone = tmp_path / "gone.png"
    for layout in (full(images=[gone] * 4), Layout("x", map=gone)):
        assert draw_layout(layout).size == (512, 512)
    thin = np.zeros((1, 500), np.uint8)
    assert draw_layout(full(images=[thin] * 4)).size == (512, 512)

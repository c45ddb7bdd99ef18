"""Drawings: boxes where they belong, legible labels, and a figure that holds all its parts."""

import base64
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from reground_jax import draw
from reground_jax.basics.boxes import overlap
from reground_jax.draw import PALETTE, comparison_grid, draw_boxes, draw_layout, phrase_colors
from reground_jax.layout import Layout

TEDDY = Layout(
    "a teddy bear sitting next to a bird",
    ["a teddy bear", "a bird"],
    [(0.0, 0.09, 0.33, 0.76), (0.55, 0.11, 1.0, 0.8)],
)
COLUMNS = ("no_grounding", "sequential", "parallel")


def gray(height: int = 512, width: int = 512) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def contrast(color: str, other: str) -> float:
    """WCAG 2 contrast ratio, 1..21."""

    def luminance(name: str) -> float:
        channels = [c / 255 for c in draw._rgb(name)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(color), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def has_color(picture: Image.Image, color: str) -> np.ndarray:
    return (np.asarray(picture) == draw._rgb(color)).all(-1)


def test_label_colors_are_readable_with_white_text_and_on_white_paper():
    # 4.5 is the WCAG AA limit for normal text
    assert all(contrast(color, "#ffffff") >= 4.5 for color in PALETTE)
    assert len(set(PALETTE)) == len(PALETTE)


def test_a_phrase_has_one_color_and_different_phrases_differ():
    colors = phrase_colors(["a cat", "a dog", "a cat"])
    assert list(colors) == ["a cat", "a dog"]
    assert colors["a cat"] != colors["a dog"]


def test_box_edges_are_drawn_at_the_boxes_pixels():
    picture = draw_boxes(gray(), TEDDY)
    blue = has_color(picture, phrase_colors(TEDDY.phrases)["a bird"])
    rows, columns = np.nonzero(blue)
    # x 0.55..1 and y 0.11..0.8 of 511, the last pixel's index
    assert (columns.min(), columns.max()) == (281, 511)
    assert (rows.min(), rows.max()) == (56, 409)
    # halfway down, only the two outlines of 3 px are blue
    assert blue[230].sum() == 6


def test_the_callers_image_is_not_changed():
    array, picture = gray(), Image.fromarray(gray())
    draw_boxes(array, TEDDY)
    draw_boxes(picture, TEDDY)
    assert (array == 128).all() and (np.asarray(picture) == 128).all()


def test_small_images_are_enlarged_and_large_ones_kept():
    assert draw_boxes(gray(48, 64), TEDDY).size == (512, 384)  # longer side 512
    assert draw_boxes(gray(600, 400), TEDDY).size == (400, 600)


def test_images_without_boxes_and_degenerate_boxes_are_drawn():
    plain = Layout("a photo")
    np.testing.assert_array_equal(np.asarray(draw_boxes(gray(), plain)), gray())
    style = Layout("a photo", ["van Gogh"], [(0, 1, 0, 1)])
    assert has_color(draw_layout(style), PALETTE[0]).any()


def test_labels_stay_inside_the_picture_and_off_one_another():
    font, size = draw._font(17), (512, 512)
    boxes = [
        (x, y, min(511, x + 30), min(511, y + 30))
        for x, y in itertools.product((0, 240, 500), (0, 240, 500))
    ]
    taken: list = []
    for box in boxes:
        tag = draw._tag_place(box, "a label", font, size, taken)
        assert 0 <= tag[0] < tag[2] < 512 and 0 <= tag[1] < tag[3] < 512
        assert not any(overlap(tag, other) for other in taken)
        taken.append(tag)


def test_labels_of_equal_boxes_do_not_cover_one_another():
    taken: list = []
    for _ in range(4):  # four corners inside the box have room for four labels
        tag = draw._tag_place((100, 100, 400, 400), "a label", draw._font(17), (512, 512), taken)
        assert not any(overlap(tag, other) for other in taken)
        taken.append(tag)


def test_a_small_box_is_drawn_over_a_large_one_whatever_their_order():
    boxes = [(0.5, 0.25, 0.75, 0.5), (0.0, 0.0, 0.75, 1.0)]  # they share part of a right edge
    for order in (slice(None), slice(None, None, -1)):
        picture = draw_layout(Layout("", ["small", "large"][order], boxes[order]))
        color = phrase_colors(["small", "large"][order])["small"]
        # x 0.75 of 511 is 383; y 220 is between the small box's ends and below its label
        assert has_color(picture, color)[220, 383]


def test_phrases_in_the_prompt_take_their_colors_singular_or_plural():
    layout = Layout("Three clocks and a cat toy, a cat", ["a clock", "a cat", "a cat toy"],
                    [(0, 0, 1, 1)] * 3)  # fmt: skip
    colors = phrase_colors(layout.phrases)
    words = draw._colored_words(layout)
    assert dict(words[1:2]) == {"clocks": colors["a clock"]}
    assert [color for _, color in words[3:6]] == [colors["a cat toy"]] * 3
    assert [color for _, color in words[6:]] == [colors["a cat"]] * 2
    assert words[0] == ("Three", draw.INK)


def test_a_phrase_inside_another_word_is_left_alone():
    layout = Layout("a caterpillar", ["a cat"], [(0, 0, 1, 1)])
    assert {color for _, color in draw._colored_words(layout)} == {draw.INK}


def test_captions_wrap_within_the_figure():
    font = draw._font(20)
    words = [("word", draw.INK)] * 50 + [("x" * 300, draw.INK)]
    lines = draw._wrapped(words, font, 400)
    assert all(0 < draw._line_width(line, font) <= 400 for line in lines)
    assert [word for line in lines for word, _ in line][:50] == ["word"] * 50


def test_a_grid_has_a_row_per_seed_and_one_caption_for_one_prompt():
    columns = {name: [gray(), gray()] for name in COLUMNS}
    one = comparison_grid([TEDDY], {name: [gray()] for name in COLUMNS})
    two = comparison_grid([TEDDY, TEDDY], columns)
    assert two.height - one.height == 512 + 8  # one more row of panels, and its gap
    assert one.width == two.width == 4 * 512 + 3 * 8 + 2 * 16  # four panels, gaps, margins
    labelled = comparison_grid([TEDDY, TEDDY], columns, row_labels=["seed 0", "seed 1"])
    assert labelled.width == two.width + 32  # the gutter of the labels


def test_a_grid_of_different_prompts_has_a_caption_below_each_row():
    other = Layout("a bird", ["a bird"], [(0, 0, 1, 1)])
    columns = {name: [gray(), gray()] for name in COLUMNS}
    same, different = (
        comparison_grid([TEDDY] * 2, columns),
        comparison_grid([TEDDY, other], columns),
    )
    assert different.height > same.height
    empty = comparison_grid([TEDDY, Layout("")], columns)  # an empty prompt has a caption too
    assert empty.height == different.height


@pytest.mark.parametrize(
    "layouts, columns, labels, sentence",
    [
        ([], {}, [], "a comparison has no rows"),
        ([TEDDY], {"parallel": []}, [], "column 'parallel' has 0 images for 1 layouts"),
        ([TEDDY], {"layout": [gray()]}, [], "column 'layout' is drawn from the layouts"),
        ([TEDDY], {"parallel": [gray()]}, ["a", "b"], "there are 2 row labels for 1 rows"),
        ([TEDDY], {"a": [gray()], "b": [gray(512, 640)]}, [], "images have sizes"),
    ],
)
def test_a_grid_whose_parts_do_not_agree_is_an_error(layouts, columns, labels, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        comparison_grid(layouts, columns, row_labels=labels)


def test_notebooks_show_a_layout_with_its_boxes_drawn():
    layout = Layout("a <b>cat</b> & a dog", ["a cat"], [(0.25, 0.25, 0.75, 0.75)])
    shown = Image.open(io.BytesIO(layout._repr_png_()))
    assert np.array_equal(shown.convert("RGB"), draw_layout(layout))
    page = layout._repr_html_()
    assert "a &lt;b&gt;cat&lt;/b&gt; &amp; a dog" in page
    assert base64.b64encode(layout._repr_png_()).decode() in page

"""Pictures of layouts: boxes over an image, a layout alone, and the papers' comparison figure.

Everything returns an RGB `PIL.Image`. A phrase has one color in its boxes, its labels and the
caption, so three boxes of "a clock" look alike. The font is Pillow's built-in one.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from reground_jax.basics.boxes import area, overlap
from reground_jax.layout import Layout
from reground_jax.panel import Rectangle, background, draw_persons, paste_reference
from reground_jax.pictures import Picture as Reference

Picture = UInt8[np.ndarray, "H W 3"] | Image.Image
Words = list[tuple[str, str]]  # (word, color)

# Each has a contrast of at least 4.5 with white (WCAG AA), as text and as background.
PALETTE = (
    "#cf222e", "#0969da", "#1a7f37", "#8250df", "#a85200",
    "#0b7285", "#bf3989", "#5c6a00", "#7a4b32", "#3d4d5c",
)  # fmt: skip
PAPER, PANEL, EDGE, INK, MUTED = "#ffffff", "#f5f4f0", "#d5d3cb", "#1f2328", "#656d76"
TINT = 38  # opacity 0..255 of a box on a layout panel: overlapping boxes stay distinct

SMALLEST = 512  # pixels of the longer side below which labels are hard to read
SUBTITLES = {
    "no_grounding": "Stable Diffusion",
    "sequential": "GLIGEN",
    "parallel": "ReGround",
}


def draw_boxes(image: Picture, layout: Layout) -> Image.Image:
    """The image with the layout's boxes, labels and persons; below 512 px it is enlarged first."""
    picture = _resized(_picture(image), at_least=SMALLEST)
    _paint(picture, layout, panel=False)
    return picture


def draw_layout(layout: Layout, *, width: int = 512, height: int = 512) -> Image.Image:
    """The layout alone on a panel of this size in pixels.

    The panel is plain, or shows the map, or the source of an inpainting request; reference images
    are in their boxes. One that cannot be read is a crossed gray area.
    """
    picture = background(layout, (width, height), PANEL)
    ImageDraw.Draw(picture).rectangle((0, 0, width - 1, height - 1), outline=EDGE)
    _paint(picture, layout, panel=True)
    return picture


def comparison_grid(
    layouts: Sequence[Layout],
    columns: Mapping[str, Sequence[Picture]],
    *,
    row_labels: Sequence[str] = (),
) -> Image.Image:
    """The papers' figure: a row per layout (or per seed of one layout), a column per wiring.

    layouts     one per row; the first column, "layout", is drawn from them
    columns     header -> one image per row, all of the same size
    row_labels  written beside the rows, such as "seed 0"; empty, or one per row

    The prompt is below the rows that share it, with its phrases in the colors of their boxes.
    Raises ValueError if the numbers or sizes of the images do not match.
    """
    _check_grid(layouts, columns, row_labels)
    pictures = {
        header: [_resized(_picture(image), at_least=SMALLEST) for image in images]
        for header, images in columns.items()
    }
    sizes = {picture.size for images in pictures.values() for picture in images}
    if len(sizes) > 1:
        raise ValueError(f"images have sizes {sorted(sizes)}: a grid needs images of equal size")
    width, height = sizes.pop() if sizes else (SMALLEST, SMALLEST)
    panels = [draw_layout(layout, width=width, height=height) for layout in layouts]
    pictures = {"layout": panels} | pictures

    unit = max(width, height) // 32  # 16 for 512 px: all distances and font sizes scale with it
    subtitles = SUBTITLES | {"layout": _asked(layouts)}
    headers = {header: subtitles.get(header, "") for header in pictures}
    parts = [("", _header_row(headers, width, unit))]
    for row, layout in enumerate(layouts):
        strip = _joined([images[row] for images in pictures.values()], unit)
        parts.append((row_labels[row] if row_labels else "", strip))
        if row + 1 == len(layouts) or layouts[row + 1].prompt != layout.prompt:
            parts.append(("", _caption(layout, strip.width, unit)))
    return _stacked(parts, unit, gutter=2 * unit if row_labels else 0)


def phrase_colors(phrases: Iterable[str | None]) -> dict[str | None, str]:
    """A color for each distinct phrase, in order of appearance; gray for no phrase."""
    distinct = dict.fromkeys(phrases)
    colors = {p: PALETTE[i % len(PALETTE)] for i, p in enumerate(filter(None, distinct))}
    return {p: MUTED if p is None else colors[p] for p in distinct}


def _check_grid(
    layouts: Sequence[Layout], columns: Mapping[str, Sequence[Picture]], row_labels: Sequence[str]
) -> None:
    if not layouts:
        raise ValueError("a comparison has no rows: give at least one layout")
    if "layout" in columns:
        raise ValueError("column 'layout' is drawn from the layouts: leave it out of the columns")
    for header, images in columns.items():
        if len(images) != len(layouts):
            raise ValueError(
                f"column {header!r} has {len(images)} images for {len(layouts)} layouts: "
                "give one per row"
            )
    if len(row_labels) not in (0, len(layouts)):
        raise ValueError(
            f"there are {len(row_labels)} row labels for {len(layouts)} rows: give one per row"
        )


# ---- boxes and their labels


class Thing(NamedTuple):
    """A box in pixels, and what belongs into it."""

    box: Rectangle
    label: str
    color: str
    image: Reference | None


def _things(layout: Layout, size: tuple[int, int]) -> list[Thing]:
    """Large boxes first, to keep small ones visible."""
    colors = phrase_colors(layout.phrases)
    images = layout.images or (None,) * len(layout.boxes)
    things = []
    for phrase, box, image in zip(layout.phrases, layout.boxes, images, strict=True):
        label = phrase or ("" if area(box) else "style")
        things.append(Thing(_pixels(box, size), label, colors[phrase], image))
    return sorted(things, key=lambda thing: -area(thing.box))


def _paint(picture: Image.Image, layout: Layout, *, panel: bool) -> None:
    """Draw boxes, labels and persons into the picture; into a panel also reference images."""
    things = _things(layout, picture.size)
    pen = ImageDraw.Draw(picture, "RGBA")
    line = max(2, min(picture.size) // 170)
    font = _font(max(11, sum(picture.size) // 60))
    for thing in things:
        _outline(pen, thing, line, tint=TINT if panel else 0)
        if panel and thing.image is not None:
            place = _reference_place(thing, font, picture.size)
            paste_reference(picture, thing.image, place)

    if layout.keypoints:
        draw_persons(picture, layout.keypoints, PALETTE)
    taken: list[Rectangle] = []
    for thing in reversed(things):  # small boxes have the fewest places for a label
        if not thing.label:
            continue
        text = _shown(thing.label, font, picture.width - 2 * _pad(font))
        tag = _tag_place(thing.box, text, font, picture.size, taken)
        taken.append(tag)
        # The white rim separates adjacent labels of the same color.
        pen.rectangle(tag, fill=thing.color, outline=(255, 255, 255, 160))
        middle = ((tag[0] + tag[2] + 1) / 2, (tag[1] + tag[3] + 1) / 2)
        pen.text(middle, text, fill="white", font=font, anchor="mm")


def _outline(pen: ImageDraw.ImageDraw, thing: Thing, line: int, *, tint: int) -> None:
    x0, y0, x1, y1 = thing.box
    pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(255, 255, 255, 200), width=1)
    inner = line + 1
    if min(x1 - x0, y1 - y0) > 2 * inner:
        light = (x0 + line, y0 + line, x1 - line, y1 - line)
        pen.rectangle(light, outline=(255, 255, 255, 140), width=1)
    pen.rectangle((x0, y0, x1, y1), outline=thing.color, width=line)
    if tint:
        pen.rectangle((x0, y0, x1, y1), fill=(*_rgb(thing.color), tint))


def _reference_place(
    thing: Thing, font: ImageFont.FreeTypeFont, size: tuple[int, int]
) -> Rectangle:
    """Where the reference image of a box goes: below its label, or beside a box without area."""
    x0, y0, x1, y1 = thing.box
    if not area(thing.box):
        side = min(size) // 5
        left = min(max(x0 - side // 2, 0), size[0] - side)
        top = min(max(y0 - side - _height(font), 0), size[1] - side)
        return left, top, left + side, top + side
    pad = max(4, min(x1 - x0, y1 - y0) // 16)
    below = _height(font) if thing.label else 0
    return x0 + pad, y0 + pad + below, x1 - pad, y1 - pad


def _tag_place(
    box: Rectangle,
    text: str,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: list[Rectangle],
) -> Rectangle:
    """Where the label of a box goes: at its edge, inside the picture, and clear of other labels."""
    x0, y0, x1, y1 = box
    width = round(font.getlength(text)) + 2 * _pad(font)
    height = _height(font)
    inside = [(x0, y0), (x1 - width, y0), (x0, y1 - height), (x1 - width, y1 - height)]
    outside = [(x0, y0 - height), (x1 - width, y0 - height), (x0, y1), (x1 - width, y1)]
    roomy = x1 - x0 >= width and y1 - y0 >= 2 * height
    places = inside + outside if roomy else outside + inside

    def placed(corner: tuple[int, int]) -> Rectangle:
        left = max(0, min(corner[0], size[0] - 1 - width))
        top = max(0, min(corner[1], size[1] - 1 - height))
        return left, top, left + width, top + height

    candidates = [placed(corner) for corner in places]
    return min(candidates, key=lambda tag: sum(overlap(tag, other) for other in taken))


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Rectangle:
    width, height = size[0] - 1, size[1] - 1
    x0, y0, x1, y1 = box
    return round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)


# ---- the parts of a figure


def _asked(layouts: Sequence[Layout]) -> str:
    """What panels of these layouts show."""
    if any(layout.keypoints for layout in layouts):
        return "key points"
    return "map" if any(layout.map for layout in layouts) else "boxes and phrases"


def _header_row(headers: Mapping[str, str], panel: int, unit: int) -> Image.Image:
    """The columns' names and their subtitles."""
    gap = unit // 2
    row = Image.new("RGB", (len(headers) * (panel + gap) - gap, 3 * unit), PAPER)
    pen = ImageDraw.Draw(row)
    for i, (header, subtitle) in enumerate(headers.items()):
        center = i * (panel + gap) + panel // 2
        title = _shown(header, _font(unit * 5 // 4), panel)
        pen.text((center, unit), title, fill=INK, font=_font(unit * 5 // 4), anchor="mm")
        pen.text((center, 2.3 * unit), subtitle, fill=MUTED, font=_font(unit), anchor="mm")
    return row


def _joined(panels: list[Image.Image], unit: int) -> Image.Image:
    gap = unit // 2
    width = sum(panel.width + gap for panel in panels) - gap
    row = Image.new("RGB", (width, panels[0].height), PAPER)
    left = 0
    for panel in panels:
        row.paste(panel, (left, 0))
        left += panel.width + gap
    return row


def _caption(layout: Layout, width: int, unit: int) -> Image.Image:
    """The prompt, wrapped and centered, with its phrases in their colors."""
    font = _font(unit * 5 // 4)
    lines = _wrapped(_colored_words(layout), font, width - 2 * unit)
    step = round(1.25 * sum(font.getmetrics()))
    caption = Image.new("RGB", (width, step * len(lines) + unit), PAPER)
    pen = ImageDraw.Draw(caption)
    for number, words in enumerate(lines):
        left = (width - _line_width(words, font)) / 2
        for word, color in words:
            pen.text((left, unit // 2 + number * step), word, fill=color, font=font)
            left += font.getlength(word) + _space(font)
    return caption


def _stacked(parts: list[tuple[str, Image.Image]], unit: int, *, gutter: int) -> Image.Image:
    """Parts stacked vertically with a margin, and their rotated labels in a gutter on the left."""
    gap, margin = unit // 2, unit
    height = sum(part.height + gap for _, part in parts) - gap
    figure = Image.new("RGB", (parts[0][1].width + gutter + 2 * margin, height + 2 * margin), PAPER)
    top = margin
    for label, part in parts:
        figure.paste(part, (margin + gutter, top))
        if label:
            text = Image.new("RGB", (part.height, gutter), PAPER)
            font = _font(unit)
            middle = (part.height / 2, gutter / 2)
            label = _shown(label, font, part.height)
            ImageDraw.Draw(text).text(middle, label, fill=MUTED, font=font, anchor="mm")
            figure.paste(text.rotate(90, expand=True), (margin, top))
        top += part.height + gap
    return figure


# ---- text


def _colored_words(layout: Layout) -> Words:
    """The prompt's words with their colors; words of a phrase have the phrase's color.

    A phrase that is not in the prompt is matched without its article, and plurals match, too:
    "a clock" colors "clocks" in "three clocks".
    """
    if not layout.prompt.strip():
        return [("(empty", MUTED), ("prompt)", MUTED)]
    colors = phrase_colors(layout.phrases)
    marks = [INK] * len(layout.prompt)
    for phrase in sorted(filter(None, colors), key=len, reverse=True):  # "a cat toy" before "a cat"
        bare = re.sub(r"^(a|an|the)\s+", "", phrase.strip(), flags=re.IGNORECASE)
        for text in (phrase.strip(), bare):
            pattern = rf"(?<!\w){re.escape(text)}(e?s)?(?!\w)"
            found = re.finditer(pattern, layout.prompt, re.IGNORECASE)
            free = [m for m in found if all(c == INK for c in marks[m.start() : m.end()])]
            for match in free:
                marks[match.start() : match.end()] = [colors[phrase]] * len(match[0])
            if free:
                break
    return [(match[0], marks[match.start()]) for match in re.finditer(r"\S+", layout.prompt)]


def _wrapped(words: Words, font: ImageFont.FreeTypeFont, width: int | float) -> list[Words]:
    """Lines no wider than `width`; a single word that is wider is cut with an ellipsis."""
    lines: list[Words] = [[]]
    for word, color in words:
        word = _shown(word, font, width)
        if lines[-1] and _line_width([*lines[-1], (word, color)], font) > width:
            lines.append([])
        lines[-1].append((word, color))
    return lines


def _line_width(words: Words, font: ImageFont.FreeTypeFont) -> float:
    return sum(font.getlength(word) + _space(font) for word, _ in words) - _space(font)


def _space(font: ImageFont.FreeTypeFont) -> float:
    return 1.3 * font.getlength(" ")  # the font's own space is too narrow between colored words


def _shown(text: str, font: ImageFont.FreeTypeFont, width: int | float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _height(font: ImageFont.FreeTypeFont) -> int:
    """Of a label."""
    return sum(font.getmetrics()) + _pad(font) // 2


def _pad(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 0.4)


# ---- pictures and colors


def _picture(image: Picture) -> Image.Image:
    """A new RGB picture, so that drawing never changes the caller's."""
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB").copy()


def _resized(picture: Image.Image, *, at_least: int) -> Image.Image:
    longer = max(picture.size)
    if longer >= at_least:
        return picture
    width, height = (max(1, round(side * at_least / longer)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)

"""What a layout's panel shows besides boxes: a map or a source, reference images, stick figures.

A picture that cannot be read is shown as a crossed gray area, so that a moved file does not spoil
the figure of finished images.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from reground_jax.layout import Layout
from reground_jax.pictures import Picture
from reground_jax.pictures.decoding import as_rgb, has_sixteen_bits, upright

Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels

MISSING, CROSS, RIM = "#c9c7c0", "#a5a39c", "#ffffff"
VEIL = 175  # opacity 0..255 of what is over the parts of a source that are filled
# Pairs of joints by their indices in keypoints.JOINTS: COCO's skeleton without ear to shoulder.
LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (0, 1), (0, 2), (1, 3), (2, 4),
)  # fmt: skip
HEAD, SHOULDERS = 0, (5, 6)


def background(layout: Layout, size: tuple[int, int], color: str) -> Image.Image:
    """A panel of this size in pixels: the source with its boxes veiled, the map, or a color."""
    picture = layout.source or layout.map
    if picture is None:
        return Image.new("RGB", size, color)
    panel = ImageOps.fit(_seen(picture, size), size, Image.Resampling.LANCZOS)
    if picture is layout.map:
        return panel
    veil = Image.new("L", size, 0)
    pen = ImageDraw.Draw(veil)
    for x0, y0, x1, y1 in layout.boxes:
        width, height = size[0] - 1, size[1] - 1
        pen.rectangle((x0 * width, y0 * height, x1 * width, y1 * height), fill=VEIL)
    panel.paste(color, mask=veil)
    return panel


def paste_reference(panel: Image.Image, picture: Picture, place: Rectangle) -> None:
    """The picture in the middle of a place, as large as fits; tiny places stay empty."""
    x0, y0, x1, y1 = place
    if min(x1 - x0, y1 - y0) < 8:
        return
    room = (x1 - x0 - 2, y1 - y0 - 2)
    image = _seen(picture, room)
    scale = min(room[0] / image.width, room[1] / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    framed = ImageOps.expand(small, 1, RIM)
    panel.paste(framed, ((x0 + x1 - framed.width) // 2, (y0 + y1 - framed.height) // 2))


def draw_persons(panel: Image.Image, persons: Iterable[Any], colors: Sequence[str]) -> None:
    """Stick figures in these colors, the smaller ones on top; persons are those of a Layout."""
    width, height = panel.width - 1, panel.height - 1
    line = max(2, min(panel.size) // 110)
    pen = ImageDraw.Draw(panel)
    for number, person in enumerate(persons):
        points = [
            None if joint is None else (joint[0] * width, joint[1] * height) for joint in person
        ]
        color = colors[number % len(colors)]
        lines = [(a, b) for i, j in LIMBS if (a := points[i]) and (b := points[j])]
        head, left, right = (points[i] for i in (HEAD, *SHOULDERS))
        if head and left and right:
            lines.append((head, ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)))
        for rim, shade in ((2, RIM), (0, color)):  # the rim separates the figure from any ground
            for a, b in lines:
                pen.line((a, b), fill=shade, width=line + rim)
            for point in filter(None, points):
                pen.circle(point, line + rim / 2, fill=shade)


def _seen(picture: Picture, room: tuple[int, int]) -> Image.Image:
    """RGB for people: labels in colors, and a cross if the picture cannot be read."""
    try:
        image = upright(picture.open())
        return _colored_labels(image) or as_rgb(image)
    except ValueError:
        blank = Image.new("RGB", room, MISSING)
        pen, (width, height) = ImageDraw.Draw(blank), room
        for line in ((0, 0, width, height), (0, height, width, 0)):
            pen.line(line, fill=CROSS, width=max(1, min(room) // 100))
        return blank


def _colored_labels(image: Image.Image) -> Image.Image | None:
    """A semantic map, which would be nearly black, in a color per class; None for other images."""
    if image.mode != "L" and not (image.mode.startswith("I") and has_sixteen_bits(image)):
        return None
    values = np.asarray(image)
    found = set(np.unique(values).tolist()) - {0, 255}
    if not found or max(found) > 151:
        return None
    hues = np.arange(256) * 0.618 % 1 * 255  # neighbors differ by the golden ratio
    table = np.stack([hues, np.full(256, 110), np.full(256, 225)], -1).astype(np.uint8)
    table[[0, 255], 1:] = 0, 90
    return Image.fromarray(table[values], "HSV").convert("RGB")

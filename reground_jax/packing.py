"""From layouts to what the fusers of a model read, by its kind of grounding; on the host."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from reground_jax.basics.boxes import area
from reground_jax.basics.short_repr import short_repr
from reground_jax.config import UNetConfig
from reground_jax.keypoints import JOINTS
from reground_jax.kinds import MAP_KINDS
from reground_jax.layout import Layout
from reground_jax.layout_kinds import check_max_persons
from reground_jax.networks.grounding import Grounding, keypoint, maps, text, text_image
from reground_jax.pictures import Picture
from reground_jax.pictures.pixels import map_pixels, source_pixels

Size = tuple[int, int]  # height, width


class Known(NamedTuple):
    """The known part of images whose boxes are to be filled."""

    pixels: UInt8[Array | np.ndarray, "B H W 3"]
    mask: Float32[Array | np.ndarray, "B h w 1"]  # of the latents; 1: known, 0: inside a box

    __repr__ = short_repr


def pack(
    layouts: Sequence[Layout],
    config: UNetConfig,
    *,
    max_boxes: int,
    size: Size,
    phrases: Mapping[str, np.ndarray],
    images: Mapping[Picture, np.ndarray],
) -> Grounding:
    """The grounding of `layouts`; a layout without any becomes null tokens.

    size: of the images, in pixels. phrases: the pooled embedding [E] float32 of each text, at least
    one. images: the feature [E] float32 of each reference image. Raises ValueError for a layout
    with too many boxes or persons, and for a map that cannot be read.
    """
    match config.grounding:
        case "text_image":
            return _pack_text_image(layouts, phrases, images, max_boxes)
        case "keypoint":
            return _pack_keypoints(layouts, config.persons)
        case kind if kind in MAP_KINDS:
            return _pack_maps(layouts, config, size)
    return pack_boxes(layouts, phrases, max_boxes=max_boxes)


def pack_boxes(
    layouts: Sequence[Layout], phrases: Mapping[str, np.ndarray], *, max_boxes: int
) -> text.Grounding:
    """The layouts' boxes and phrases in `max_boxes` slots each; unused slots have mask 0.

    phrases: as for `pack`. No layout may have more than `max_boxes` boxes.
    """
    shape, width = (len(layouts), max_boxes), next(iter(phrases.values())).shape[-1]
    made = text.Grounding(_zeros(*shape, 4), _zeros(*shape, width), _zeros(*shape))
    for row, slot, layout in _slots(layouts):
        phrase = layout.phrases[slot]
        if phrase is not None:
            made.boxes[row, slot], made.phrases[row, slot] = layout.boxes[slot], phrases[phrase]
            made.mask[row, slot] = 1
    return made


def _pack_text_image(
    layouts: Sequence[Layout],
    phrases: Mapping[str, np.ndarray],
    images: Mapping[Picture, np.ndarray],
    max_boxes: int,
) -> text_image.Grounding:
    shape, width = (len(layouts), max_boxes), next(iter(phrases.values())).shape[-1]
    boxes, mask = _zeros(*shape, 4), _zeros(*shape)
    of_phrases, of_images = _zeros(*shape, width), _zeros(*shape, width)
    phrase_weights, image_weights = _zeros(*shape), _zeros(*shape)
    for row, layout in enumerate(layouts):
        count = len(layout.boxes)
        mask[row, :count] = 1
        phrase_weights[row, :count], image_weights[row, :count] = (
            layout.text_masks, layout.image_masks,
        )  # fmt: skip
    for row, slot, layout in _slots(layouts):
        boxes[row, slot] = layout.boxes[slot]
        if (phrase := layout.phrases[slot]) is not None:
            of_phrases[row, slot] = phrases[phrase]
        if layout.images is not None and (image := layout.images[slot]) is not None:
            of_images[row, slot] = images[image]
    return text_image.Grounding(boxes, mask, of_phrases, phrase_weights, of_images, image_weights)


def _pack_keypoints(layouts: Sequence[Layout], persons: int) -> keypoint.Grounding:
    shape = (len(layouts), persons * len(JOINTS))
    made = keypoint.Grounding(_zeros(*shape, 2), _zeros(*shape))
    for row, layout in enumerate(layouts):
        check_max_persons(layout, persons)
        joints = [joint for person in layout.keypoints or () for joint in person]
        for slot, joint in enumerate(joints):
            if joint is not None:
                made.points[row, slot], made.mask[row, slot] = joint, 1
    return made


def _pack_maps(layouts: Sequence[Layout], config: UNetConfig, size: Size) -> maps.Grounding:
    assert config.map is not None and config.grounding is not None
    classes = config.map.classes
    pixels = np.zeros((len(layouts), *size, *(() if classes else (3,))), np.uint8)
    mask = _zeros(len(layouts))
    for row, layout in enumerate(layouts):
        if layout.map is not None:
            own = map_pixels(layout.map, config.grounding, *size, classes=classes or 0)
            pixels[row], mask[row] = own, 1
    return maps.Grounding(pixels, mask)


def pack_known(layouts: Sequence[Layout], *, size: Size, latent_size: Size) -> Known:
    """The sources of `layouts`, and which of their latents are known.

    A layout without a source is all unknown. Raises ValueError for one that cannot be read.
    """
    pixels = np.zeros((len(layouts), *size, 3), np.uint8)
    mask = _zeros(len(layouts), *latent_size, 1)
    for row, layout in enumerate(layouts):
        if layout.source is not None:
            pixels[row] = source_pixels(layout.source, *size)
            mask[row, ..., 0] = known_cells(layout.boxes, *latent_size)
    return Known(pixels, mask)


def known_cells(
    boxes: Sequence[Sequence[float]], height: int, width: int
) -> Float32[np.ndarray, "h w"]:
    """0 for the cells inside a box, 1 elsewhere.

    Edges are rounded down, as in GLIGEN's code (gligen_inference.py, draw_masks_from_boxes), but a
    box with an area fills at least one cell.
    """
    mask = np.ones((height, width), np.float32)
    sides = np.array([width, height, width, height], np.float32)
    for box in boxes:
        if area(box) > 0:
            x0, y0, x1, y1 = (np.asarray(box, np.float32) * sides).astype(int).tolist()
            x0, y0 = min(x0, width - 1), min(y0, height - 1)
            mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 0
    return mask


def _slots(layouts: Sequence[Layout]) -> Iterator[tuple[int, int, Layout]]:
    """Each box of each layout."""
    for row, layout in enumerate(layouts):
        for slot in range(len(layout.boxes)):
            yield row, slot, layout


def _zeros(*shape: int) -> Float[np.ndarray, "..."]:
    return np.zeros(shape, np.float32)

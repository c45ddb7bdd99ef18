"""What the networks read of a picture: a map, a reference image, or the known part of an image.

Maps are prepared as by GLIGEN's inference code, reference images as by CLIP's processor, both to
the byte. All pictures are upright first, as image viewers show them. Nothing is guessed: a value
that could mean two things is an error.
"""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from reground_jax.basics.fields import check_name
from reground_jax.kinds import MAP_KINDS
from reground_jax.pictures import Picture
from reground_jax.pictures.decoding import as_rgb, has_sixteen_bits, upright

IGNORED = 255  # what label maps have where there is no label, besides 0

BICUBIC = Image.Resampling.BICUBIC
# Of CLIP's training images.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
LONGEST = 32  # sides of a reference image, at most 32 to 1


def map_pixels(
    picture: Picture, kind: str, height: int = 512, width: int = 512, *, classes: int = 152
) -> UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]:
    """A map at `height` and `width` pixels: RGB, or the classes of kind "sem".

    The largest center part with the same ratio of sides is resized. kind: one of MAP_KINDS. Classes
    are the values of a gray image, or the indices of a palette, of 8 or 16 bits: 0 is unlabeled,
    and 255 counts as 0; `classes` is one above the largest. In other kinds, 16 bits become 8.
    Raises ValueError that names the picture, also for pixels that are transparent, as a map has a
    value everywhere.
    """
    check_name("kind of map", kind, MAP_KINDS)
    image = upright(picture.open())
    try:
        indexed = kind == "sem" and image.mode == "P"  # its colors mean nothing
        if not indexed and _is_transparent(image):
            raise ValueError(
                "its pixels are partly transparent, but a map has a value everywhere: put it on a "
                "background, and save it without an alpha channel"
            )
        if kind == "sem":
            labels = Image.fromarray(_labels(image, classes))
            return _fitted(labels, height, width, Image.Resampling.NEAREST)
        return _fitted(_opaque_rgb(image), height, width, BICUBIC)
    except ValueError as error:
        raise ValueError(f"{picture.name} cannot be a {kind} map: {error}") from error


def reference_pixels(picture: Picture, side: int = 224) -> Float32[np.ndarray, "S S 3"]:
    """A reference image as `clip_pixels` prepares it.

    CLIP's processor ignores transparency; here, white is behind transparent pixels. Raises
    ValueError that names the picture.
    """
    image = upright_rgb(picture)
    short, long = sorted(image.size)
    if long > LONGEST * short:
        raise ValueError(
            f"{picture.name} is {image.width} x {image.height} pixels, and only its center square "
            "would be read: crop it to the thing that it shows"
        )
    return clip_pixels(image, side)


def clip_pixels(image: Image.Image, side: int = 224) -> Float32[np.ndarray, "S S 3"]:
    """An RGB image as CLIP's image processor prepares it, with Pillow, to the byte.

    The shorter side becomes `side`, the center square is kept, and colors are normalized.
    """
    short, long = sorted(image.size)
    long = int(side * long / short)
    width, height = (side, long) if image.width <= image.height else (long, side)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), BICUBIC)
    pixels = np.asarray(resized.crop((left, top, left + side, top + side)), np.float32)
    return (pixels / np.float32(255) - MEAN) / STD


def source_pixels(picture: Picture, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """The image whose boxes are filled, at `height` and `width` pixels.

    The largest center part with the same ratio of sides is resized (Pillow's bicubic); boxes are
    fractions of that part. White is behind transparent pixels, and 16 bits become 8. Raises
    ValueError that names the picture.
    """
    return _fitted(upright_rgb(picture), height, width, BICUBIC)


def upright_rgb(picture: Picture) -> Image.Image:
    """As image viewers show it. White is behind transparent pixels, and 16 bits become 8.

    Raises ValueError that names the picture.
    """
    image = upright(picture.open())
    try:
        return as_rgb(image)
    except ValueError as error:
        raise ValueError(f"cannot use {picture.name}: {error}") from error


def _fitted(
    image: Image.Image, height: int, width: int, resampling: Image.Resampling
) -> UInt8[np.ndarray, "H W *C"]:
    """The largest center part with this ratio of sides, resized."""
    across = min(image.width, max(1, round(image.height * width / height)))
    down = min(image.height, max(1, round(image.width * height / width)))
    return np.asarray(_center(image, across, down).resize((width, height), resampling))


def _center(image: Image.Image, width: int, height: int) -> Image.Image:
    """As torchvision's center_crop; Python rounds half to even."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _opaque_rgb(image: Image.Image) -> Image.Image:
    return as_rgb(image) if has_sixteen_bits(image) else image.convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    if has_sixteen_bits(image):
        return bool((np.asarray(image) == image.info["transparency"]).any())
    return bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())


def _labels(image: Image.Image, classes: int) -> UInt8[np.ndarray, "H W"]:
    values = np.asarray(image)
    if image.mode == "LA":
        values = values[..., 0]
    elif image.mode in ("RGB", "RGBA"):
        if (values[..., :1] != values[..., 1:3]).any():
            raise ValueError(
                "its pixels are colors, but a semantic map has labels: give the gray or palette "
                "image of labels that the colors were made from"
            )
        values = values[..., 0]
    elif image.mode not in ("L", "P") and not has_sixteen_bits(image):
        raise ValueError(f"its pixels have mode {image.mode}: give labels as 8-bit gray or palette")
    labels = np.where(values == IGNORED, 0, values)
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise ValueError(
            f"it has the label {wrong[0]}, but this model has {classes} classes; GLIGEN's are "
            "ADE20K's, 1 to 150, and 0 for unlabeled: use those (a network's 0 to 149 need 1 added)"
        )
    return labels.astype(np.uint8)

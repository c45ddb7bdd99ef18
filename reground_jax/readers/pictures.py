"""Image files as upright RGB, however they are stored; what cannot be decided is an error.

Pillow alone would ignore the EXIF orientation, clip 16-bit values to white, and show whatever
colors lie below transparent pixels.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

BEHIND = "white"  # what shows through transparent pixels
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
# Pillow may also load these formats' 16 bits in mode "I", scaled to 0..65535.
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")


def read_picture(path: Path, annotated_size: tuple[int, int] | None = None) -> Image.Image:
    """The image in a file, upright, as RGB.

    annotated_size: (width, height) in the annotation file; an image is not rotated if only its
    stored orientation agrees with them. Transparent pixels are composited over white, 16 bits
    become 8, and the first frame of an animation is used. Raises ValueError that names the file.
    """
    if not path.is_file():  # a pipe or device would block
        kind = "is not a regular file" if path.exists() else "does not exist"
        raise ValueError(f"cannot read picture {path}: it {kind}")
    try:
        with Image.open(path) as file:
            file.load()
            return _as_rgb(_upright(file, annotated_size), file.format)
    except MemoryError:
        raise
    # Pillow's decoders raise anything for a damaged file: SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise ValueError(f"cannot read picture {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its format is not one that Pillow knows"
    return str(error) or type(error).__name__


def _upright(image: Image.Image, annotated_size: tuple[int, int] | None) -> Image.Image:
    """Rotated by its EXIF orientation, unless the annotations refer to the image as stored."""
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata is ignored
        return image
    if annotated_size is not None:
        wide = _is_wide(annotated_size)
        if wide == _is_wide(image.size) != _is_wide(turned.size):
            return image
    return turned


def _is_wide(size: tuple[int, int]) -> bool:
    width, height = size
    return width > height


def _as_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and file_format in SIXTEEN_BIT_FORMATS):
        return _from_sixteen_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels have mode {image.mode!r}, which does not define black and white: "
            "store it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        below = Image.new("RGBA", picture.size, BEHIND)
        return Image.alpha_composite(below, picture).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float32) / 257
    if (clear := image.info.get("transparency")) is not None:
        values[np.asarray(image) == clear] = 255
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")

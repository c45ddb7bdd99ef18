"""Image files of strangers to images: within limits, upright, and as RGB however they are stored.

Pillow alone would ignore the EXIF orientation, clip 16-bit values to white, and show whatever
colors lie below transparent pixels. What cannot be decided is an error.
"""

import io

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 2**26  # 8192 x 8192
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none that runs other programs

BEHIND = "white"  # what shows through transparent pixels
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
# Pillow may also load these formats' 16 bits in mode "I"; None is an image in memory.
SIXTEEN_BIT_FORMATS = ("PNG", "PPM", None)


def decode(content: bytes) -> Image.Image:
    """The image in a file, or the first of several, as it is stored.

    Raises ValueError whose message completes "cannot read FILE: ".
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            file.load()
            return _of_format(file.copy(), file.format)
    except MemoryError:
        raise
    # Pillow's decoders raise anything for a damaged file: SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise ValueError(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """What Pillow could not do."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "its format is not one that Pillow knows"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has more than {MAX_PIXELS:,} pixels; make it smaller"
    return str(error) or type(error).__name__


def upright(image: Image.Image, annotated_size: tuple[int, int] | None = None) -> Image.Image:
    """Rotated by its EXIF orientation, unless the annotations refer to the image as stored."""
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata is ignored
        return image
    if annotated_size is not None:
        wide = _is_wide(annotated_size)
        if wide == _is_wide(image.size) != _is_wide(turned.size):
            return image
    return _of_format(turned, image.format)


def as_rgb(image: Image.Image) -> Image.Image:
    """Transparent pixels are composited over white, and 16 bits become 8.

    Raises ValueError for an image without a defined white.
    """
    if has_sixteen_bits(image):
        return from_sixteen_bits(image)
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        below = Image.new("RGBA", picture.size, BEHIND)
        return Image.alpha_composite(below, picture).convert("RGB")
    return image.convert("RGB")


def has_sixteen_bits(image: Image.Image) -> bool:
    """Raises ValueError if it has more bits, and thus no defined white."""
    if image.mode in SIXTEEN_BITS:
        return True
    if image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS:
        values = np.asarray(image)
        if values.min() >= 0 and values.max() <= 65535:
            return True
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels have mode {image.mode!r}, which does not define black and white: "
            "store it with 8 or 16 bits"
        )
    return False


def from_sixteen_bits(image: Image.Image) -> Image.Image:
    """RGB of an image of 16 bits."""
    values = np.asarray(image).astype(np.float32) / 257
    if (clear := image.info.get("transparency")) is not None:
        values[np.asarray(image) == clear] = 255
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


def _is_wide(size: tuple[int, int]) -> bool:
    width, height = size
    return width > height


def _of_format(image: Image.Image, file_format: str | None) -> Image.Image:
    """Pillow's copies forget the format of the file."""
    image.format = file_format
    return image

"""Image files for training, as upright RGB (pictures/decoding.py)."""

from pathlib import Path

from PIL import Image

from reground_jax.pictures.decoding import as_rgb, reason_of, upright


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
            return as_rgb(upright(file, annotated_size))
    except MemoryError:
        raise
    # Pillow's decoders raise anything for a damaged file: SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise ValueError(f"cannot read picture {path}: {reason_of(error)}") from error

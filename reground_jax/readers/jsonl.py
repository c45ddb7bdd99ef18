"""JSONL of annotated images: one object per line with image, caption, phrases, boxes.

    {"image": "a.jpg", "caption": "a cat", "phrases": ["a cat"], "boxes": [[.1, .2, .5, .9]]}

Image paths are relative to the file. Boxes are fractions of the whole image, as xyxy unless the
line has another "box_format". "caption" may be a list of captions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reground_jax.basics.json_text import parse_json
from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt
from reground_jax.readers.annotated import Annotated

FIELDS = {"image", "caption", "phrases", "boxes", "box_format"}


def read_jsonl(path: str | Path) -> Iterator[Annotated | Rejected]:
    """The entries of a file in order; an invalid line becomes a Rejected.

    Raises ValueError if the file cannot be read.
    """
    path = Path(path)
    try:
        # Binary lines end only at a line feed; str.splitlines would also end them at U+2028 and
        # others, which may be inside a JSON string.
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield attempt(f"{path}, line {number}", _entry, line, path.parent)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def _entry(line: bytes, folder: Path) -> Annotated:
    value = parse_json(line)
    if not isinstance(value, dict) or "image" not in value or set(value) - FIELDS:
        raise ValueError(f"{shown(value)}: expected an object with {', '.join(sorted(FIELDS))}")
    image = value.pop("image")
    if not isinstance(image, str) or not image:
        raise ValueError(f"image is {shown(image)}: it must be the path of a file")
    captions = _captions(value.pop("caption", ""))
    # The captions are joined into one prompt here, so that each is checked.
    layout = Layout.from_json({"prompt": "\n".join(captions), **value})
    return Annotated(folder / image, captions, layout.phrases, layout.boxes)


def _captions(value: Any) -> tuple[str, ...]:
    captions = tuple(value) if isinstance(value, list) else (value,)
    for caption in captions:
        if not isinstance(caption, str):
            raise ValueError(f"caption is {shown(value)}: it must be a string or a list of strings")
    return captions

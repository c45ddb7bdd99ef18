"""JSONL of annotated images: one object per line with image, caption, phrases, boxes.

    {"image": "a.jpg", "caption": "a cat", "phrases": ["a cat"], "boxes": [[.1, .2, .5, .9]]}

Image paths are relative to the file. Boxes are fractions of the whole image, xyxy, or what a
"box_format" in the line says. "caption" may be a list of captions.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reground_jax.layout import Layout
from reground_jax.readers import Rejected
from reground_jax.readers.annotated import Annotated

FIELDS = {"image", "caption", "phrases", "boxes", "box_format"}


def read_jsonl(path: str | Path) -> Iterator[Annotated | Rejected]:
    """The entries of a file, in its order; a line that is no entry is a Rejected.

    Raises ValueError if the file cannot be read.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _entry(json.loads(line), path.parent)
        except ValueError as error:
            yield Rejected(source=f"{path}, line {number}", reason=str(error))


def _entry(value: Any, folder: Path) -> Annotated:
    if not isinstance(value, dict) or "image" not in value or set(value) - FIELDS:
        raise ValueError(f"{str(value)[:80]}: expected an object with {', '.join(sorted(FIELDS))}")
    captions = value.get("caption", "")
    captions = (captions,) if isinstance(captions, str) else tuple(captions)
    layout = Layout.from_json(
        {
            "prompt": captions[0] if captions else "",
            **{
                field: value[field]
                for field in ("phrases", "boxes", "box_format")
                if field in value
            },
        }
    )
    return Annotated(folder / value["image"], captions, layout.phrases, layout.boxes)

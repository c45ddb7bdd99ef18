"""A layout in the format of InstanceDiffusion's demos (github.com/frank-xwang/InstanceDiffusion).

    {"caption": "...", "width": 512, "height": 512,
     "annos": [{"bbox": [0, 51, 179, 230], "caption": "a gray cat", "mask": [], ...}, ...]}

Boxes are x, y, width, height in pixels. Masks, points and settings are ignored: GLIGEN has no use
for them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt
from reground_jax.readers.pixels import fractions, image_size


def is_instancediffusion(content: Any) -> bool:
    return isinstance(content, dict) and {"caption", "annos"} <= content.keys()


def instancediffusion_layouts(content: Any, path: str | Path) -> Iterator[Layout | Rejected]:
    """The single layout of a file's content; its id is the file's name without the suffix.

    Raises ValueError if the content is not in this format.
    """
    if not is_instancediffusion(content):
        raise ValueError(f"InstanceDiffusion file {path} is not an object with caption and annos")
    yield attempt(f"{path}, its layout", _layout, content, Path(path).stem)


def _layout(content: dict[str, Any], name: str) -> Layout:
    size = image_size(content)
    if not isinstance(content["annos"], list):
        raise ValueError(f"annos is {shown(content['annos'])}: it must be a list")
    phrases, boxes = [], []
    for number, thing in enumerate(content["annos"], 1):
        if not isinstance(thing, dict) or "bbox" not in thing:
            raise ValueError(f"object {number} of annos has no bbox: give it one, or leave it out")
        try:
            boxes.append(fractions(thing["bbox"], size))
        except ValueError as error:
            raise ValueError(f"object {number} of annos: {error}") from None
        phrases.append(thing.get("caption") or thing.get("category_name"))
    return Layout(content["caption"], phrases, boxes, id=name)

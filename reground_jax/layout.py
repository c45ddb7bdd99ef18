"""`Layout`: what to generate, as one frozen value.

That is a prompt, and what grounds it: phrases and images in boxes, key points, or a map.

Inside the package all boxes have GLIGEN's format: x0, y0, x1, y1 as fractions 0..1 of the image,
origin at the top left. Other formats are converted on input (`Layout.from_json`, readers/). Which
fields a model takes depends on its kind (layout_kinds.py).
"""

import base64
import dataclasses
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from pathlib import Path
from typing import Any, no_type_check

from reground_jax import layout_fields
from reground_jax.basics.fields import check_name
from reground_jax.basics.json_text import parse_json
from reground_jax.basics.wording import shown
from reground_jax.keypoints import checked_persons
from reground_jax.layout_fields import check_text
from reground_jax.pictures import Picture
from reground_jax.settings import MAX_BOXES

BOX_FORMATS = ("xyxy", "xywh")
PER_BOX = ("phrases", "boxes", "tokens", "images", "phrase_weights", "image_weights")


@no_type_check  # the checks and messages below must run before the tests' type checker
@dataclass(frozen=True)
class Layout:
    """One image to generate. Lists are stored as tuples, so a Layout is hashable.

    prompt           text for the whole image; may be empty
    phrases          one nonempty text per box; None for a box that has an image instead
    boxes            one (x0, y0, x1, y1) per phrase, fractions 0..1 of the image, x0 <= x1 and
                     y0 <= y1. A box may have zero area: (0, 1, 0, 1) is GLIGEN's style token.
                     Edges within 1e-6 of the image's are snapped to it
    negative_prompt  text that guidance steers away from
    id               a name for error messages and files
    tokens           for attention guidance: the positions of each box's words in the encoded
                     prompt, where 0 is its begin token; by default, where the phrase is found
    images           a picture of the thing in each box, cropped to it, or None: a path, a PIL image
                     or a uint8 array (see `Picture`)
    phrase_weights, image_weights  how much phrases and images count: a number of at least 0, or one
                     per box; by default 1
    keypoints        persons, each 17 joints in COCO's order: None, (x, y) or (x, y, visibility), as
                     fractions of the image. Stored largest first, invisible joints as None
    map              a picture of the whole image's edges, depth, normals or classes
    source           for inpainting: the picture whose boxes are filled
    box_format       format of the `boxes` argument: "xyxy" (corners) or "xywh" (top left corner,
                     width and height), both as fractions. Boxes are stored as corners
    folder           what relative paths of pictures are relative to; by default, the working
                     directory

    Raises ValueError naming the layout, the box (counting from 1), the rule and the way out. Files
    of pictures are read when they are needed, which is also for comparing and hashing layouts.
    The maximum number of boxes depends on the settings: see `check_max_boxes`.
    """

    prompt: str
    phrases: Sequence[str | None] = ()
    boxes: Sequence[Sequence[float]] = ()
    negative_prompt: str = ""
    id: str | None = None
    _: KW_ONLY
    tokens: Sequence[Sequence[int]] | None = None
    images: Sequence[Any] | None = None
    phrase_weights: float | Sequence[float] | None = None
    image_weights: float | Sequence[float] | None = None
    keypoints: Sequence[Sequence[Any]] | None = None
    map: Any = None
    source: Any = None
    box_format: InitVar[str] = "xyxy"
    folder: InitVar[str | Path | None] = None

    def __post_init__(self, box_format: str, folder: str | Path | None) -> None:
        check_name("box_format", box_format, BOX_FORMATS)
        for field in ("prompt", "negative_prompt"):
            check_text(f"{field} of {self.name}", getattr(self, field))
        if self.id is not None:
            check_text(f"id of {self.name}", self.id)
        for field, value in self._checked(box_format, folder):
            object.__setattr__(self, field, value)

    def _checked(self, box_format: str, folder: str | Path | None) -> Iterator[tuple[str, Any]]:
        """The fields in the form in which they are stored."""
        name = self.name
        boxes = layout_fields.checked_boxes(self.boxes, name, box_format)
        count = len(boxes)
        images = layout_fields.checked_images(self.images, name, count, folder)
        yield "boxes", boxes
        yield "images", images
        yield "phrases", layout_fields.checked_phrases(self.phrases, name, count, images)
        if self.tokens is not None:
            yield "tokens", layout_fields.checked_tokens(self.tokens, name, count)
        for field in ("phrase_weights", "image_weights"):
            weights = getattr(self, field)
            yield field, layout_fields.checked_weights(weights, field, name, count)
        if self.keypoints is not None:
            yield "keypoints", checked_persons(self.keypoints, name) or None
        for field in ("map", "source"):
            if (picture := getattr(self, field)) is not None:
                yield field, Picture.of(picture, folder, name=f"{field} of {name}")

    @property
    def name(self) -> str:
        """The layout's name in messages: its id, or else the start of its prompt."""
        if self.id is not None:
            return f"layout {self.id!r}"
        prompt = str(self.prompt)
        return f"the layout with prompt {prompt if len(prompt) <= 40 else prompt[:39] + '…'!r}"

    def _repr_png_(self) -> bytes:
        """The drawn boxes, for notebooks."""
        from reground_jax.draw import draw_layout

        file = io.BytesIO()
        draw_layout(self).save(file, "PNG")
        return file.getvalue()

    def _repr_html_(self) -> str:
        source = f"data:image/png;base64,{base64.b64encode(self._repr_png_()).decode()}"
        words = html.escape(self.prompt)
        return f'<img width="256" alt="" src="{source}"><br>{words}'

    @property
    def pictures(self) -> dict[str, Picture]:
        """All pictures, by name in messages: "image 1", "map"."""
        named = {f"image {number}": image for number, image in enumerate(self.images or (), 1)}
        named |= {"map": self.map, "source": self.source}
        return {name: picture for name, picture in named.items() if picture is not None}

    @property
    def text_masks(self) -> tuple[float, ...]:
        """How much the phrase of each box counts; 0 for a box without one."""
        return _masks(self.phrases, self.phrase_weights)

    @property
    def image_masks(self) -> tuple[float, ...]:
        """How much the image of each box counts; 0 for a box without one."""
        return _masks(self.images or (None,) * len(self.boxes), self.image_weights)

    def only(self, boxes: Sequence[int]) -> "Layout":
        """With the boxes of these indices, in this order, and what belongs to them."""
        lists = {name: getattr(self, name) for name in PER_BOX}
        kept: Any = {
            name: tuple(value[index] for index in boxes)
            for name, value in lists.items()
            if isinstance(value, tuple)
        }
        return dataclasses.replace(self, **kept)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, boxes as xyxy lists; `from_json` returns an equal Layout."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: _json(value) for name, value in fields.items() if value is not None}

    @classmethod
    def from_json(
        cls, value: Any, *, box_format: str = "xyxy", folder: str | Path | None = None
    ) -> "Layout":
        """A Layout from its JSON form; every field except "prompt" may be absent or null.

        box_format, folder  as in the constructor. A "box_format" in `value` takes precedence.
        """
        if not isinstance(value, dict):
            raise ValueError(
                f'layout is {shown(value)}: expected a JSON object such as {{"prompt": …}}'
            )
        known = ("box_format", *(field.name for field in dataclasses.fields(cls)))
        for field in value:
            check_name("layout field", field, known)
        if "prompt" not in value:
            raise ValueError(
                f"layout {value.get('id', '')!r} has no prompt: add one; it may be empty"
            )
        given: dict[str, Any] = {"box_format": box_format, "folder": folder}
        given |= {k: v for k, v in value.items() if v is not None or k == "prompt"}
        return cls(**given)

    @classmethod
    def load(cls, path: str | Path, *, box_format: str = "xyxy") -> "Layout":
        """The layout in a JSON file (see `from_json`). Raises ValueError naming the file.

        Relative paths of pictures are relative to the file.
        """
        layouts = cls.load_all(path, box_format=box_format)
        if len(layouts) != 1:
            raise ValueError(
                f"layout file {path} has {len(layouts)} layouts: give a file of one, or use "
                "`reground-jax batch`"
            )
        return layouts[0]

    @classmethod
    def load_all(cls, path: str | Path, *, box_format: str = "xyxy") -> "list[Layout]":
        """The layouts in a JSON file: one, or a list of them. Raises ValueError naming the file."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read layout file {path}: {error.strerror}") from error
        try:
            value = parse_json(content)
        except ValueError as error:
            raise ValueError(f"layout file {path} is not JSON: {error}; correct it") from error
        form: Any = {"box_format": box_format, "folder": Path(path).parent}
        try:
            values = value if isinstance(value, list) and value else [value]
            return [cls.from_json(value, **form) for value in values]
        except ValueError as error:
            raise ValueError(f"layout file {path}: {error}") from error


def check_max_boxes(layout: Layout, max_boxes: int) -> None:
    """Raise ValueError if the layout has more boxes than there are grounding tokens."""
    count = len(layout.boxes)
    if count > MAX_BOXES:
        raise ValueError(f"{layout.name} has {count} boxes, more than {MAX_BOXES}: leave some out")
    if count > max_boxes:
        raise ValueError(
            f"{layout.name} has {count} boxes, more than max_boxes={max_boxes}: leave some out, or "
            f"set max_boxes={count} (GLIGEN was trained with 30, and the number changes the image)"
        )


def _masks(given: Sequence[Any], weights: Any) -> tuple[float, ...]:
    """One number per box: its weight, or 0 if nothing is given."""
    numbers = (
        weights
        if isinstance(weights, tuple)
        else (1.0 if weights is None else weights,) * len(given)
    )
    pairs = zip(given, numbers, strict=True)
    return tuple(0.0 if value is None else number for value, number in pairs)


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(entry) for entry in value]
    return value.to_json() if isinstance(value, Picture) else value

"""`Layout`: what to generate, a prompt and phrases in boxes, as one frozen value.

Inside the package all boxes have GLIGEN's format: x0, y0, x1, y1 as fractions 0..1 of the image,
origin at the top left. Other formats are converted on input (`Layout.from_json`, readers/).
"""

import base64
import dataclasses
import html
import io
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from pathlib import Path
from typing import Any, no_type_check

from reground_jax.basics.fields import as_int, check_name
from reground_jax.basics.json_text import parse_json
from reground_jax.basics.wording import shown
from reground_jax.settings import MAX_BOXES

Box = tuple[float, float, float, float]

BOX_FORMATS = ("xyxy", "xywh")
# Corners, or x + width, of a box that ends at the image's edge may be off by a float32 rounding
# error, which is not a mistake.
EDGE_TOLERANCE = 1e-6


@no_type_check  # the checks and messages below must run before the tests' type checker
@dataclass(frozen=True)
class Layout:
    """One image to generate. Lists are stored as tuples, so a Layout is hashable.

    prompt           text for the whole image; may be empty
    phrases          one nonempty text per box
    boxes            one (x0, y0, x1, y1) per phrase, fractions 0..1 of the image, x0 <= x1 and
                     y0 <= y1. A box may have zero area: (0, 1, 0, 1) is GLIGEN's style token.
                     Edges within 1e-6 of the image's are snapped to it
    negative_prompt  text that guidance steers away from
    id               a name for error messages and files
    tokens           for attention guidance: the positions of each box's words in the encoded
                     prompt, where 0 is its begin token; by default, where the phrase is found
    box_format       format of the `boxes` argument: "xyxy" (corners) or "xywh" (top left corner,
                     width and height), both as fractions. Boxes are stored as corners

    Raises ValueError naming the layout, the box (counting from 1), the rule and the way out.
    The maximum number of boxes depends on the settings: see `check_max_boxes`.
    """

    prompt: str
    phrases: Sequence[str] = ()
    boxes: Sequence[Sequence[float]] = ()
    negative_prompt: str = ""
    id: str | None = None
    _: KW_ONLY
    tokens: Sequence[Sequence[int]] | None = None
    box_format: InitVar[str] = "xyxy"

    def __post_init__(self, box_format: str) -> None:
        check_name("box_format", box_format, BOX_FORMATS)
        for field in ("prompt", "negative_prompt"):
            if not isinstance(value := getattr(self, field), str):
                raise ValueError(f"{field} of {self.name} is {shown(value)}: it must be a string")
            _check_encodable(f"{field} of {self.name}", value)
        if self.id is not None:
            if not isinstance(self.id, str):
                raise ValueError(f"id of {self.name} is {shown(self.id)}: it must be a string")
            _check_encodable(f"id of {self.name}", self.id)
        object.__setattr__(self, "phrases", _phrases(self.phrases, self.name))
        object.__setattr__(self, "boxes", _boxes(self.boxes, self.name, box_format))
        if len(self.phrases) != len(self.boxes):
            raise ValueError(
                f"{self.name} has {len(self.phrases)} phrases and {len(self.boxes)} boxes: "
                "give one box per phrase, in the same order"
            )
        if self.tokens is not None:
            object.__setattr__(self, "tokens", _tokens(self.tokens, self.name, len(self.boxes)))

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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, boxes as xyxy lists; `from_json` returns an equal Layout."""
        value = dataclasses.asdict(self)
        value |= {"phrases": list(self.phrases), "boxes": [list(box) for box in self.boxes]}
        if self.id is None:
            del value["id"]
        if self.tokens is None:
            del value["tokens"]
        else:
            value["tokens"] = [list(own) for own in self.tokens]
        return value

    @classmethod
    def from_json(cls, value: Any, *, box_format: str = "xyxy") -> "Layout":
        """A Layout from its JSON form; every field except "prompt" may be absent or null.

        box_format  as in the constructor. A "box_format" in `value` takes precedence.
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
        given: dict[str, Any] = {"box_format": box_format}
        given |= {k: v for k, v in value.items() if v is not None or k == "prompt"}
        return cls(**given)

    @classmethod
    def load(cls, path: str | Path, *, box_format: str = "xyxy") -> "Layout":
        """The layout in a JSON file (see `from_json`). Raises ValueError naming the file."""
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
        try:
            values = value if isinstance(value, list) and value else [value]
            return [cls.from_json(value, box_format=box_format) for value in values]
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


def _check_encodable(what: str, text: str) -> None:
    """Raise ValueError for an unpaired surrogate: no tokenizer or file can encode it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has an unpaired surrogate ({text[error.start]!a}) at character "
            f"{error.start + 1}: remove it, or write the whole character"
        ) from None


def _phrases(phrases: Any, name: str) -> tuple[str, ...]:
    if isinstance(phrases, str) or not hasattr(phrases, "__iter__"):
        raise ValueError(
            f"phrases of {name} are {shown(phrases)}: give a list with one text per box"
        )
    phrases = tuple(phrases)
    for number, phrase in enumerate(phrases, 1):
        if not isinstance(phrase, str) or not phrase.strip():
            raise ValueError(
                f"phrase {number} of {name} is {shown(phrase)}: a phrase must be a nonempty "
                "string; say what is in the box, or remove both"
            )
        _check_encodable(f"phrase {number} of {name}", phrase)
    return phrases


def _tokens(tokens: Any, name: str, count: int) -> tuple[tuple[int, ...], ...]:
    lists = list(tokens) if isinstance(tokens, (list, tuple)) else []
    if len(lists) != count or not all(isinstance(own, (list, tuple)) for own in lists):
        raise ValueError(
            f"tokens of {name} are {shown(tokens)}: give {count} lists of positions, one per box"
        )
    rule = "give positions in the encoded prompt, from 1"
    made = tuple(
        tuple(as_int(f"a token of box {number} of {name}", token, rule) for token in own)
        for number, own in enumerate(lists, 1)
    )
    if any(token < 1 for own in made for token in own):
        raise ValueError(f"tokens of {name} are {shown(tokens)}: {rule}")
    return made


def _boxes(boxes: Any, name: str, box_format: str) -> tuple[Box, ...]:
    if isinstance(boxes, (str, dict)) or not hasattr(boxes, "__iter__"):
        raise ValueError(
            f"boxes of {name} are {shown(boxes)}: give a list of boxes of four numbers"
        )
    return tuple(_box(box, f"box {i} of {name}", box_format) for i, box in enumerate(boxes, 1))


def _box(box: Any, name: str, box_format: str) -> Box:
    """One checked box as xyxy floats."""
    way_out = {
        "xyxy": "give xyxy fractions of the image, or box_format='xywh'",
        "xywh": "give x, y, width, height as fractions of the image, or box_format='xyxy'",
    }[box_format]
    try:
        if isinstance(box, str) or any(isinstance(value, (str, bool)) for value in box):
            raise TypeError
        given = [float(value) for value in box]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{name} is {shown(box)}: a box is a list of four numbers; {way_out}"
        ) from None
    name = f"{name} is {shown(given)}"
    if len(given) != 4:
        raise ValueError(f"{name}: a box has four numbers, not {len(given)}; {way_out}")
    if not all(map(math.isfinite, given)):
        raise ValueError(f"{name}: every number must be finite; {way_out}")

    x0, y0, x1, y1 = given
    edges = ("x0", "y0", "x1", "y1")
    orders = ("x1 must not be less than x0", "y1 must not be less than y0")
    if box_format == "xywh":
        x1, y1 = x0 + x1, y0 + y1
        edges = ("x", "y", "x + width", "y + height")
        orders = ("width must not be negative", "height must not be negative")
    x0, y0, x1, y1 = map(_snap, (x0, y0, x1, y1))
    for edge, value in zip(edges, (x0, y0, x1, y1), strict=True):
        if not 0 <= value <= 1:
            pixels = " (divide pixels by the image's width and height)" if value > 1 else ""
            raise ValueError(f"{name}: {edge} is {value:.9g}, outside 0..1; {way_out}{pixels}")
    for order, low, high in zip(orders, (x0, y0), (x1, y1), strict=True):
        if high < low:
            raise ValueError(f"{name}: {order}; {way_out}")
    return x0, y0, x1, y1


def _snap(edge: float) -> float:
    """Snap an edge that is outside the image by no more than a rounding error to its edge."""
    inside = min(max(edge, 0.0), 1.0)
    return inside if abs(edge - inside) <= EDGE_TOLERANCE else edge

"""Which layouts a model takes: what each kind of checkpoint is grounded by.

A checkpoint has one kind. A field that it does not read is an error, because the image would not
show what was asked for.
"""

from typing import Any, NamedTuple

from reground_jax.basics.boxes import area
from reground_jax.basics.wording import plural
from reground_jax.kinds import GroundingKind
from reground_jax.layout import Layout


class Takes(NamedTuple):
    """words: what the model is grounded by. fields: of Layout, those that it reads."""

    words: str
    fields: tuple[str, ...]


TAKES: dict[GroundingKind, Takes] = {
    "text": Takes("text in boxes", ("boxes",)),
    "text_image": Takes(
        "texts and images in boxes", ("boxes", "images", "phrase_weights", "image_weights")
    ),
    "keypoint": Takes("the key points of persons", ("keypoints",)),
    "hed": Takes("a map of soft edges", ("map",)),
    "canny": Takes("a map of edges", ("map",)),
    "depth": Takes("a depth map", ("map",)),
    "normal": Takes("a map of surface normals", ("map",)),
    "sem": Takes("a semantic map", ("map",)),
}
# What a layout may have, with what it is called in messages.
NAMES = {
    "boxes": "boxes",
    "images": "images in its boxes",
    "phrase_weights": "phrase_weights",
    "image_weights": "image_weights",
    "keypoints": "key points",
    "map": "a map",
}


def check_kind(layout: Layout, kind: GroundingKind, inpainting: bool = False) -> None:
    """Raise ValueError unless a model of this kind reads all that the layout has.

    The error names what the layout has, and what the model takes.
    """
    for field, words in NAMES.items():
        if _given(getattr(layout, field)) and field not in TAKES[kind].fields:
            takers = ", ".join(name for name, other in TAKES.items() if field in other.fields)
            it = "it" if field == "map" else "them"
            raise ValueError(
                f"{layout.name} has {words}, but this model is grounded by {TAKES[kind].words} "
                f"(kind {kind}): leave {it} out, or use a checkpoint of kind {takers}"
            )
    if "map" in TAKES[kind].fields and layout.map is None:
        raise ValueError(
            f"{layout.name} has no map, but this model is grounded by {TAKES[kind].words} (kind "
            f"{kind}): it needs a map; give the path of its picture"
        )
    _check_source(layout, inpainting)


def _check_source(layout: Layout, inpainting: bool) -> None:
    if layout.source is not None and not inpainting:
        raise ValueError(
            f"{layout.name} has a source, the picture whose boxes are filled, but this model makes "
            "whole images: leave it out, or use an inpainting checkpoint"
        )
    if not inpainting:
        return
    if layout.source is None:
        raise ValueError(
            f"{layout.name} has no source, but this is an inpainting model, which fills the boxes "
            "of a picture: give the picture as source"
        )
    if not any(map(area, layout.boxes)):
        raise ValueError(
            f"{layout.name} has no box with an area, but an inpainting model fills the boxes of "
            "its source: give at least one"
        )


def check_max_persons(layout: Layout, max_persons: int) -> None:
    """Raise ValueError if the layout has more persons than the model can tell apart."""
    count = len(layout.keypoints or ())
    if count > max_persons:
        raise ValueError(
            f"{layout.name} has the key points of {plural(count, 'person')}, but this model knows "
            f"{max_persons}: leave some out"
        )


def check_pictures(layout: Layout) -> None:
    """Raise ValueError if a picture of the layout cannot be read, or changed since."""
    for name, picture in layout.pictures.items():
        try:
            picture.check()
        except ValueError as error:
            raise ValueError(f"{name} of {layout.name}: {error}") from error


def _given(value: Any) -> bool:
    return value is not None and value != ()

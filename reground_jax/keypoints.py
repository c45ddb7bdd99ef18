"""Key points: the joints of persons, in COCO's order, as fractions of the image.

GLIGEN numbers the persons of an image by size, so the largest comes first.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from reground_jax.basics.fields import as_float
from reground_jax.basics.wording import shown
from reground_jax.layout_fields import snap

Joint = tuple[float, float]
Person = tuple[Joint | None, ...]  # one per name in JOINTS; None: not visible

JOINTS = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder",
    "left elbow", "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee",
    "right knee", "left ankle", "right ankle",
)  # fmt: skip
VISIBLE = 2  # of COCO's three values; GLIGEN was trained without joints that are hidden (1)
FORM = f"a person is a list of {len(JOINTS)} joints in COCO's order, each [x, y], [x, y, v] or null"


def checked_persons(value: Any, name: str) -> tuple[Person, ...]:
    """The persons of a layout, the largest first. name: the layout's, for messages.

    value: per person 17 joints, each None, (x, y), or (x, y, v) with COCO's visibility v, of which
    only 2 counts. Raises ValueError, also for a person without a visible joint.
    """
    persons = []
    for number, person in enumerate(_list(value, f"keypoints of {name} are", "give persons"), 1):
        called = f"person {number} of {name}"
        joints = _list(person, f"{called} is", FORM)
        if len(joints) != len(JOINTS):
            raise ValueError(f"{called} has {len(joints)} joints: {FORM}")
        pairs = zip(JOINTS, joints, strict=True)
        persons.append(tuple(_joint(joint, f"{part} of {called}") for part, joint in pairs))
        if not any(persons[-1]):
            raise ValueError(
                f"{called} has no visible joint: give one (with visibility 2, if at all), or leave "
                "the person out"
            )
    return largest_first(persons)


def largest_first(persons: Iterable[Person]) -> tuple[Person, ...]:
    """By the area of the box around the joints; equal ones keep their order."""
    return tuple(sorted(persons, key=lambda person: -_area(person)))


def _area(person: Person) -> float:
    xs, ys = zip(*filter(None, person), strict=True)
    return (max(xs) - min(xs)) * (max(ys) - min(ys))


def _joint(value: Any, name: str) -> Joint | None:
    if value is None:
        return None
    numbers = _list(value, f"the {name} is", "give [x, y], [x, y, v] or null")
    if len(numbers) not in (2, 3):
        raise ValueError(f"the {name} is {shown(value)}: give [x, y], [x, y, v] or null")
    if len(numbers) == 3:
        rule = "it is 2 for visible, 1 for hidden or 0 for unknown, as in COCO"
        visibility = as_float(f"visibility of the {name}", numbers[2], rule)
        if visibility not in (0, 1, 2):
            raise ValueError(f"visibility of the {name} is {visibility:g}: {rule}")
        if visibility != VISIBLE:
            return None
    rule = "give fractions of the image, from 0 to 1"
    x, y = (snap(as_float(f"a coordinate of the {name}", v, rule)) for v in numbers[:2])
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"the {name} is at {x:g}, {y:g}, outside the image: {rule}")
    return x, y


def _list(value: Any, name: str, rule: str) -> Sequence[Any]:
    """The entries of a list, tuple or array."""
    if isinstance(value, (list, tuple)):
        return value
    if hasattr(value, "tolist") and isinstance(entries := value.tolist(), list):
        return entries
    raise ValueError(f"{name} {shown(value)}: {rule}")

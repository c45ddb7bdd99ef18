"""The fields of a frozen config: of the type that their annotation says, and within bounds.

Values come from files that people edit. A wrong one must end here, with a sentence, not in an
allocation or a loop that its size asks for.
"""

import dataclasses
import functools
import math
import operator
import types
from reprlib import Repr
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Range = tuple[int, int]  # both ends belong to it


def shown(value: Any) -> str:
    """A value in a message: its repr, cut to a line, whatever its size and depth."""
    form = Repr()
    form.maxstring, form.maxother, form.maxlevel = 120, 80, 3
    return form.repr(value)


def check_fields(config: Any, **ranges: Range) -> None:
    """Raises ValueError unless every field has its annotated type, and those named lie in `ranges`
    (each entry, of a list).

    Types are bool, int, float (finite), Literal of texts, tuples of one of these, or None beside
    one. Whole numbers of float fields become floats, and lists tuples.
    """
    kind = type(config).__name__
    for name, hint in _hints(type(config)).items():
        value = _typed(getattr(config, name), hint, f"{kind}.{name}")
        object.__setattr__(config, name, value)
        if name in ranges and value is not None:
            for number in value if isinstance(value, tuple) else (value,):
                check_range(f"{kind}.{name}", number, *ranges[name])


def check_range(name: str, number: int, low: int, high: int) -> None:
    if not low <= number <= high:
        raise ValueError(f"{name} is {shown(number)}: it must be from {low} to {high}")


def as_int(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {shown(value)}: it must be a whole number") from None


def as_object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {shown(value)}: it must be a JSON object")
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _typed(value: Any, hint: Any, name: str) -> Any:
    if get_origin(hint) in (types.UnionType, Union):
        if value is None:
            return None
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} is {shown(value)}: it must be a list")
        return tuple(_typed(entry, get_args(hint)[0], f"an entry of {name}") for entry in value)
    if get_origin(hint) is Literal:
        if not (isinstance(value, str) and value in get_args(hint)):
            known = ", ".join(map(repr, get_args(hint)))
            raise ValueError(f"{name} is {shown(value)}: it must be one of {known}")
        return value
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {shown(value)}: it must be true or false")
        return value
    return as_int(name, value) if hint is int else _as_float(name, value)


def _as_float(name: str, value: Any) -> float:
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {shown(value)}: it must be a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}: it must be finite")
    return number

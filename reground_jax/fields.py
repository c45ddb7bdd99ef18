"""The fields of a frozen config: of the type that their annotation says, and within bounds.

Values come from files that people edit. A wrong one must end here, with a sentence, not in an
allocation or a loop that its size asks for.
"""

import dataclasses
import functools
import math
import operator
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from reground_jax.wording import shown

Range = tuple[int, int]  # both ends belong to it


def typed(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Field values of a dataclass from JSON, each of the type that its annotation says.

    Checked are bool, int, float (finite), str, Literal of texts, tuples of these, and None beside
    one; whole numbers of float fields become floats, and lists tuples. Values of other types pass.
    Raises ValueError.
    """
    hints = _hints(kind)
    return {k: _typed(v, hints[k], f"{kind.__name__}.{k}") for k, v in values.items()}


def check_fields(config: Any, **ranges: Range) -> None:
    """For `__post_init__`: as `typed`; and those named must lie in `ranges`."""
    kind = type(config)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name, value in typed(kind, values).items():
        object.__setattr__(config, name, value)
        if name in ranges and value is not None:
            for number in value if isinstance(value, tuple) else (value,):
                check_range(f"{kind.__name__}.{name}", number, *ranges[name])


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
    form, parts = get_origin(hint), get_args(hint)
    if form in (types.UnionType, Union) and len(parts) == 2 and types.NoneType in parts:
        (other,) = (part for part in parts if part is not types.NoneType)
        return None if value is None else _typed(value, other, name)
    if form is tuple:
        return _typed_tuple(value, parts, name)
    if form is Literal:
        if not (isinstance(value, str) and value in parts):
            known = ", ".join(map(repr, parts))
            raise ValueError(f"{name} is {shown(value)}: it must be one of {known}")
        return value
    for kind, words in ((bool, "true or false"), (str, "a text")):
        if hint is kind and not isinstance(value, kind):
            raise ValueError(f"{name} is {shown(value)}: it must be {words}")
    if hint is int:
        return as_int(name, value)
    return as_float(name, value) if hint is float else value


def _typed_tuple(value: Any, parts: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} is {shown(value)}: it must be a list")
    if parts[-1] is ...:
        parts = parts[:1] * len(value)
    if len(parts) != len(value):
        raise ValueError(f"{name} is {shown(value)}: it must be a list of {len(parts)}")
    pairs = zip(value, parts, strict=True)
    return tuple(_typed(entry, part, f"an entry of {name}") for entry, part in pairs)


def as_float(name: str, value: Any) -> float:
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {shown(value)}: it must be a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}: it must be finite")
    return number

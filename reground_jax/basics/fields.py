"""Checks of field values: known names, the right types, and within bounds.

Values come from hand-edited files and from arguments. A wrong one must fail here, with a clear
message, not in an allocation or a loop of its size.
"""

import dataclasses
import difflib
import functools
import math
import operator
import types
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from reground_jax.basics.wording import shown

T = TypeVar("T")
Range = tuple[int, int]  # inclusive


def parse(kind: type[T], value: Any, name: str, *, known: Iterable[str] | None = None) -> T:
    """The dataclass `kind` from the JSON object that a config file has as `name`.

    known: the fields that may be given; None for all. Lists become tuples. Raises ValueError.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    known = tuple(fields) if known is None else tuple(known)
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}: it must be a JSON object of {', '.join(known)}")
    for field in value:
        check_name(f"{name} field", field, known)
    missing = dataclasses.MISSING
    for field in known:
        needed = fields[field].default is missing and fields[field].default_factory is missing
        if needed and field not in value:
            raise ValueError(f"{name} has no {field!r}: add it")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
    except TypeError as error:  # a value of the wrong type, in a class without checks
        raise ValueError(f"{name}: {error}") from error


def typed(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Field values of a dataclass from JSON, checked against their annotations.

    Checks bool, int, float (finite), str, Literal of strings, dataclasses (also as JSON objects),
    tuples of these, and unions of one with None; integers in float fields become floats, and lists
    become tuples. Other types are not checked. Raises ValueError.
    """
    hints = _hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(
            f"{kind.__name__} has no field {', '.join(unknown)}; it has {sorted(hints)}"
        )
    return {k: _typed(v, hints[k], f"{kind.__name__}.{k}") for k, v in values.items()}


def check_fields(config: Any, **ranges: Range) -> None:
    """For `__post_init__`: like `typed`, and the fields in `ranges` must lie within them."""
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


def check_name(kind: str, name: object, known: Iterable[str]) -> None:
    """Raises ValueError, with the closest name and a list of all, unless `name` is in `known`."""
    known = tuple(known)
    if isinstance(name, str) and name in known:
        return
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    hint = f"did you mean {near[0]!r}? It" if near else "it"
    raise ValueError(f"{kind} {name!r} is unknown: {hint} must be one of {', '.join(known)}")


def as_int(name: str, value: Any, rule: str | None = None) -> int:
    """An int from a Python, NumPy or JSON integer, but not a boolean. Raises ValueError.

    rule: what to pass instead, for the message.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(_wrong(name, value, "a whole number", rule)) from None


def as_float(name: str, value: Any, rule: str | None = None) -> float:
    """A finite float from a Python, NumPy or JSON number, but not a string or boolean.

    rule: as in `as_int`. Raises ValueError.
    """
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(_wrong(name, value, "a number", rule)) from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}: {rule or 'it must be finite'}")
    return number


def _wrong(name: str, value: Any, kind: str, rule: str | None) -> str:
    way_out = f": it must be {kind}" if rule is None else f", which is not {kind}: {rule}"
    return f"{name} is {shown(value)}{way_out}"


def as_object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {shown(value)}: it must be a JSON object")
    return value


def check_number(
    name: str, value: object, words: str, allowed: Callable[[Any], bool], *, whole: bool = False
) -> None:
    """Raises ValueError unless `value` is a finite number that is `allowed`, as `words` says."""
    rule = f"give a {'whole ' if whole else ''}number {words}"
    if not allowed((as_int if whole else as_float)(name, value, rule)):
        raise ValueError(f"{name} is {value}: {rule}")


def at_least(low: float) -> tuple[str, Callable[[Any], bool]]:
    """The arguments `words` and `allowed` of `check_number`."""
    return f"of at least {low}", lambda value: value >= low


def between(low: float, high: float) -> tuple[str, Callable[[Any], bool]]:
    return f"from {low} to {high}", lambda value: low <= value <= high


POSITIVE = ("above 0", lambda value: value > 0)
FRACTION = ("of at least 0 and below 1", lambda value: 0 <= value < 1)


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
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else hint(**typed(hint, as_object(name, value)))
    for kind, words in ((bool, "true or false"), (str, "a string")):
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

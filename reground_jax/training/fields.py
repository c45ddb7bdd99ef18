"""The parts of a config file as checked values: every mistake is a ValueError, before any work."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from reground_jax.settings import check_name, number, whole_number

T = TypeVar("T")


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
    except TypeError as error:  # of a value of another type, where the class checks none
        raise ValueError(f"{name}: {error}") from error


def check_number(
    name: str, value: object, words: str, allowed: Callable[[Any], bool], *, whole: bool = False
) -> None:
    """Raises ValueError unless `value` is a finite number that is `allowed`; `words` say which."""
    rule = f"give a {'whole ' if whole else ''}number {words}"
    if not allowed((whole_number if whole else number)(name, value, rule)):
        raise ValueError(f"{name} is {value}: {rule}")


def at_least(low: float) -> tuple[str, Callable[[Any], bool]]:
    """The middle arguments of `check_number`."""
    return f"of at least {low}", lambda value: value >= low


def between(low: float, high: float) -> tuple[str, Callable[[Any], bool]]:
    return f"from {low} to {high}", lambda value: low <= value <= high


POSITIVE = ("above 0", lambda value: value > 0)
FRACTION = ("of at least 0 and below 1", lambda value: 0 <= value < 1)

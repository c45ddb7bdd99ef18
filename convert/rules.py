"""Rules for fields of third-party config files, and a check of a whole file at once.

A rule describes in words what a value must be, and tests a value. Numbers have bounds far above
those of any real model, so that a damaged or malicious file is refused here, not by whatever it
would break later.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reground_jax.basics.json_text import parse_json
from reground_jax.basics.small_files import read_small
from reground_jax.basics.wording import shown

MAX_BYTES = 2**26  # of a JSON file; the largest real one, tokenizer.json, has 4 MB
MAX_LEVELS = 8
SHOWN = 8  # problems of one file that a message lists


class UnsupportedConfig(ValueError):
    """The config needs something that is not supported, or has an unknown field."""


class Rule(NamedTuple):
    text: str
    accepts: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Rule(f"a whole number from {low} to {high}", accepts)


def real(low: float, high: float) -> Rule:
    """A number, which cannot be NaN or infinite if the bounds are finite."""

    def accepts(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and low <= value <= high

    return Rule(f"a number from {low:g} to {high:g}", accepts)


def one_of(*choices: Any) -> Rule:
    # `in` alone would accept 1 for True
    def accepts(value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in choices)

    return Rule(" or ".join(map(repr, choices)), accepts)


def listed(rule: Rule, least: int = 1, most: int = MAX_LEVELS) -> Rule:
    """A list of values that the rule accepts."""

    def accepts(value: Any) -> bool:
        is_list = isinstance(value, list | tuple) and least <= len(value) <= most
        return is_list and all(map(rule.accepts, value))

    return Rule(f"a list of {least} to {most} entries, each {rule.text}", accepts)


def per_level(rule: Rule) -> Rule:
    """One value, or a list with one for each level."""
    each = listed(rule)
    return Rule(
        f"{rule.text}, or a list of them", lambda value: rule.accepts(value) or each.accepts(value)
    )


FLAG = one_of(True, False)
TEXT = Rule("a string", lambda value: isinstance(value, str))
MAX_LENGTHS = whole(3, 4096)  # of a text in tokens; at least begin, end, and one word


def check_fields(
    where: str,
    fields: Mapping[str, Any],
    translated: Mapping[str, Rule],
    neutral: Mapping[str, tuple[Any, ...]],
    ignored: Iterable[str],
) -> dict[str, Any]:
    """The translated fields that the file contains; null counts as left out.

    Raises UnsupportedConfig that lists every value that breaks its rule or is not neutral, and
    every unknown field. Unknown fields that are null or false are likely features of a later
    version that are off, and are named in one warning instead.
    """
    wrong, passed = [], []
    for field, value in fields.items():
        if field in translated:
            if value is not None and not translated[field].accepts(value):
                wrong.append(f"{field} is {shown(value)}, expected {translated[field].text}")
        elif field in neutral:
            wrong += _not_neutral(field, value, neutral[field])
        elif field.startswith("_") or field in ignored:
            continue
        elif value is None or value is False:
            passed.append(field[:60])
        else:
            wrong.append(f"field {field[:60]} ({shown(value)}) is unknown")
    if wrong:
        raise UnsupportedConfig(
            f"{where}: {_some(wrong, '; ')}. Such a model is not supported: use another one"
        )
    if passed:
        warnings.warn(
            f"{where}: {_some(passed, ', ')}: unknown, and assumed to be off, being null or "
            "false; if images differ from diffusers', look here first",
            stacklevel=2,
        )
    return {f: fields[f] for f in translated if fields.get(f) is not None}


def check_neutral(
    where: str, fields: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raises UnsupportedConfig for a field whose value is not one of those listed."""
    wrong = []
    for field, supported in neutral.items():
        if fields.get(field) is not None:
            wrong += _not_neutral(field, fields[field], supported)
    if wrong:
        raise UnsupportedConfig(f"{where}: {'; '.join(wrong)}")


def _not_neutral(field: str, value: Any, supported: tuple[Any, ...]) -> list[str]:
    """What is wrong with a value. A list with one entry per level is fine if each entry is."""
    values = value if isinstance(value, list | tuple) else [value]
    if all(entry in supported for entry in values):
        return []
    wanted = " or ".join(map(repr, supported)) or "an empty list"
    return [f"{field} is {shown(value)}, expected {wanted}"]


def _some(texts: list[str], separator: str) -> str:
    more = f"{separator}and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return separator.join(texts[:SHOWN]) + more


def refused(where: str, field: str, value: Any, supported: Any) -> UnsupportedConfig:
    """The error to raise for one value."""
    return UnsupportedConfig(f"{where}: {field} is {shown(value)}, expected {supported}")


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError that names the file if it is missing or not an object."""
    fields = parse_file(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}, expected a JSON object")
    return fields


def parse_file(path: str | Path) -> Any:
    """The value in a JSON file of reasonable size. Raises ValueError that names the file."""
    try:
        return parse_json(read_small(path, MAX_BYTES))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; download the whole folder again") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; download it again") from error

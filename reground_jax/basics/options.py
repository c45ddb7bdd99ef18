"""Dataclass fields as command-line options: their names, help, and how to read their text.

`option(...)` takes the place of `dataclasses.field(...)`; cli/options.py turns it into argparse
options. Text that a reader here does not understand stays text, for the field's own check.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NUMBERS = r"[-+.,/\deE]*\d[-+.,/\deE]*"  # words of a list of numbers
AMOUNTS = r"(-?[\d.]|\w+=)[-+\w.,:/=]*"  # words of a list of amounts
NAMES = rf"[A-Za-z_,+]+(:{AMOUNTS})?"  # words of a list of names, with an amount or without
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Option:
    """A field as an option.

    help     what it means, with jargon explained
    metavar  name of its value in help
    read     converts text to a value
    name     of the option, if it is not "--" plus the field name
    aliases  names in other programs: accepted, but not listed in help
    group    heading in help: "sampling", "model", "hardware", "output"
    words    pattern of further words that belong to a list; empty if there is only one word
    """

    help: str
    metavar: str
    read: Callable[[str], Any] = str
    name: str = ""
    aliases: tuple[str, ...] = ()
    group: str = "sampling"
    words: str = ""


def option(default: Any, help: str, metavar: str = "", **keywords: Any) -> Any:
    """A dataclass field with a default and, as metadata, its `Option`."""
    described = Option(help, metavar, **keywords)
    return dataclasses.field(default=default, metadata={"option": described})


def options(cls: type) -> dict[str, Option]:
    """The options of a dataclass by field name, in the order of its fields."""
    found = {field.name: field.metadata.get("option") for field in dataclasses.fields(cls)}
    return {
        field: dataclasses.replace(found, name=found.name or "--" + field.replace("_", "-"))
        for field, found in found.items()
        if found is not None
    }


def read_items(text: str) -> list[str]:
    """The items of a list, separated by commas, spaces or both.

    A word with numbers by place, such as down=1,mid=0, is one item.
    """
    words = ([word] if "=" in word else word.split(",") for word in text.split())
    return [item for word in words for item in word if item]


def read_number(text: str) -> int | float | str:
    """The text as a number, or unchanged if it is not one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def read_numbers(text: str) -> list[int | float | str]:
    return [read_number(item) for item in read_items(text)]


def read_gamma(text: str) -> Any:
    """One gamma: a number, or three parts separated by slashes or commas."""
    parts = re.split(r"[/,]", text)
    return read_number(text) if len(parts) == 1 else [read_number(part) for part in parts]


def read_gammas(text: str) -> list[Any]:
    """A list of gammas, whose parts, if any, are separated by slashes.

    Raises ValueError for a word such as 0.3,0,0.7, which might be three gammas or the parts of one.
    """
    for word in text.split():
        found = read_items(word)
        fractions = [part for part in map(read_number, found) if not isinstance(part, str)]
        if len(found) == len(fractions) == 3 and abs(sum(fractions) - 1) <= SUM_TOLERANCE:
            raise ValueError(
                f"{word} might be three gammas or the three parts of one: write "
                f"{' '.join(found)} for three gammas, or {'/'.join(found)} for one"
            )
    return [read_gamma(item) for item in read_items(text)]

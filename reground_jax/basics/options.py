"""What a field of a dataclass is called on a command line, what help says of it, and how its text
is read.

`option(...)` stands where `dataclasses.field(...)` would; cli/options.py makes argparse's options
of it. What a reader here cannot make sense of stays text, for the check that knows the rule.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NUMBERS = r"[-+.,/\deE]*\d[-+.,/\deE]*"  # words of a list of numbers
NAMES = r"[A-Za-z_,]+"  # words of a list of names
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Option:
    """A field as an option.

    help     what it means, with a gloss for words of the field
    metavar  what help calls its value
    read     text to value
    name     of the option, where it is not "--" and the field's own name
    aliases  what other programs call it: understood, but not listed in help
    group    heading in help: "sampling", "model", "hardware", "output"
    words    pattern of the further words that belong to a list; empty where one word is all
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
    """The items of a list, between commas, spaces or both."""
    return [item for item in re.split(r"[\s,]+", text) if item]


def read_number(text: str) -> int | float | str:
    """The number that the text is; other text stays."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def read_numbers(text: str) -> list[int | float | str]:
    return [read_number(item) for item in read_items(text)]


def read_gamma(text: str) -> Any:
    """One gamma: a number, or three parts with slashes or commas between."""
    parts = re.split(r"[/,]", text)
    return read_number(text) if len(parts) == 1 else [read_number(part) for part in parts]


def read_gammas(text: str) -> list[Any]:
    """A list of gammas, whose parts, if they have parts, are written with slashes.

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

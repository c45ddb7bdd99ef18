"""Counts and values in sentences."""

import reprlib
from typing import Any

LONGEST = 120  # characters


def plural(count: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shown(value: Any) -> str:
    """`repr` in one short line, of any value in short time.

    A plain repr of a list that holds itself doubled forty times would never end.
    """
    form = reprlib.Repr()
    form.maxlevel, form.maxstring, form.maxother, form.maxlist, form.maxtuple = 3, 80, 100, 12, 12
    text = form.repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def named(name: str) -> str:
    """A name as it is, where it is short and can be printed; else as `shown` has it."""
    return name if len(name) <= LONGEST and name.isprintable() else shown(name)

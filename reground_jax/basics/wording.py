"""Counts and values in messages."""

import re
import reprlib
from typing import Any

LONGEST = 120  # characters


def plural(count: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shown(value: Any) -> str:
    """`repr` on one short line, which takes little time for any value.

    A plain repr of lists that hold the next one twice, forty levels deep, would never end.
    """
    form = reprlib.Repr()
    form.maxlevel, form.maxstring, form.maxother, form.maxlist, form.maxtuple = 3, 80, 100, 12, 12
    text = form.repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def named(name: str) -> str:
    """The name itself if it is short and printable, or else `shown(name)`."""
    return name if len(name) <= LONGEST and name.isprintable() else shown(name)


def slug(prompt: str) -> str:
    """The first words of a text as part of a file name."""
    return "-".join(re.findall(r"\w+", prompt.lower())[:8])[:60] or "image"

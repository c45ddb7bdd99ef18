"""Values of other people's files in messages."""

import reprlib
from typing import Any

LONGEST = 120  # characters


def brief(value: Any) -> str:
    """`repr` in one short line, of any value in short time.

    A plain repr of a list that holds itself doubled forty times would never end.
    """
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 80, 100
    text = short.repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def shown(name: str) -> str:
    """A name as it is, where it is short and printable; else as `brief` has it."""
    return name if len(name) <= LONGEST and name.isprintable() else brief(name)

"""Readers: files in the forms that people have -> `Layout`, or `Rejected` with the reason.

One file per form. A reader yields one value per entry and never drops one silently; what to do with
a rejected entry (stop, count, print) is the caller's choice. A file that is not of the form at all
is a ValueError.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rejected:
    """An entry of a file that is no valid layout: which one, and one sentence why."""

    source: str
    reason: str

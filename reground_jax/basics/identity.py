"""What a resumable run depends on, as plain JSON values, and how two of these differ.

A folder that is resumed must hold the run that is asked for: its record is compared, and every
difference is named.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

WIDTH = 60  # characters of a value in a sentence
SHOWN = 6  # differences in a sentence


class Difference(NamedTuple):
    """A value that is not what was recorded; `name` has the names of all parts, "recipe.seed"."""

    name: str
    recorded: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.name} {_shown(self.recorded)} -> {_shown(self.given)}"


def differences(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> list[Difference]:
    """Where two identities differ, by name; a value that one of them lacks is None there.

    given: may hold tuples, which JSON gives back as lists.
    """
    old, new = (dict(_leaves(json.loads(json.dumps(value)))) for value in (recorded, given))
    names = sorted(old.keys() | new.keys())
    return [Difference(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)]


def listed(found: Sequence[Difference]) -> str:
    """The first differences as a part of a sentence, and how many more there are."""
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "; ".join([*map(str, found[:SHOWN]), *more])


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, part in value.items():
        if isinstance(part, dict):
            yield from _leaves(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"

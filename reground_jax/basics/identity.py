"""What a resumable run depends on, as plain JSON values, and how two such identities differ.

A folder to resume must hold the requested run: its record is compared, and every difference is
reported.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

WIDTH = 60  # characters of a value in a message
SHOWN = 6  # differences in a message


class Difference(NamedTuple):
    """A value that differs from the recorded one; `name` is its full path, like "recipe.seed"."""

    name: str
    recorded: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.name} {_shown(self.recorded)} -> {_shown(self.given)}"


def differences(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> list[Difference]:
    """Where two identities differ, by name; a value that one of them lacks is None.

    given: may contain tuples, which JSON turns into lists.
    """
    old, new = (dict(_leaves(json.loads(json.dumps(value)))) for value in (recorded, given))
    names = sorted(old.keys() | new.keys())
    return [Difference(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)]


def listed(found: Sequence[Difference]) -> str:
    """The first differences, as part of a message, and how many more there are."""
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

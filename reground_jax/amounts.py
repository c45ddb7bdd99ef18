"""A number that may differ by place in the U-Net and by step, as people write it.

    0.5                                     everywhere
    {"down": 1, "mid": 0, "up": 0}          by part of the U-Net
    {"64": 0, "32": 1}                      by side of a level's feature map in the model's own size
    [[0.3, 1], [0.7, {"mid": 0}]]           by fraction of the steps, each with one of the above

Places that are not named have 1. On a command line: 0.5, down=1,mid=0 and 0.3:1/0.7:mid=0.
`sampling/coupling.py` makes the table of a model from it. Nothing here imports JAX.
"""

from collections.abc import Mapping
from typing import Any

from reground_jax.basics.fields import as_float
from reground_jax.basics.options import SUM_TOLERANCE, read_number
from reground_jax.basics.wording import shown

Places = tuple[tuple[str, float], ...]  # by place
Piece = float | Places
# As Settings has it: a number, a number by place, or pieces of the steps. All can be hashed.
Amount = float | Places | tuple[tuple[float, Piece], ...]

RULE = (
    'give a number, numbers by place such as {"down": 1, "mid": 0}, or pieces of the steps such '
    "as [[0.3, 1], [0.7, 0]]"
)


def checked_amount(name: str, value: object) -> Amount:
    """`value` in the form that Settings has. Raises ValueError for anything but an amount."""
    value = getattr(value, "tolist", lambda: value)()  # of an array
    if not isinstance(value, (list, tuple)) or _named(value):
        return _piece(name, value)
    pieces = [part for part in value if isinstance(part, (list, tuple)) and len(part) == 2]
    if not value or len(pieces) != len(value):
        raise ValueError(f"{name} is {shown(value)}: {RULE}")
    fractions = [as_float(f"a fraction of {name}", fraction, RULE) for fraction, _ in pieces]
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"{name} is {shown(value)}: its fractions of the steps must be above 0 and add up to 1"
        )
    return tuple(
        (fraction, _piece(name, own)) for fraction, (_, own) in zip(fractions, pieces, strict=True)
    )


def pieces(amount: Amount) -> list[tuple[float, Piece]]:
    """(fraction of the steps, number or numbers by place), in order."""
    if isinstance(amount, tuple) and not _named(amount):
        return list(amount)  # type: ignore[arg-type]
    return [(1.0, amount)]  # type: ignore[list-item]


def amount_json(amount: Amount) -> Any:
    """As JSON has it; the inverse of `checked_amount`."""
    if not isinstance(amount, tuple):
        return amount
    if _named(amount):
        return dict(amount)  # type: ignore[arg-type]
    return [[fraction, amount_json(own)] for fraction, own in amount]  # type: ignore[arg-type]


def amount_text(amount: Amount) -> str:
    """As a command line has it; the inverse of `read_amount`."""
    if not isinstance(amount, tuple):
        return f"{amount:g}"
    if _named(amount):
        return ",".join(f"{place}={number:g}" for place, number in amount)
    return "/".join(f"{fraction:g}:{amount_text(own)}" for fraction, own in amount)  # type: ignore[arg-type]


def read_amount(text: str) -> Any:
    """0.5, down=1,mid=0 or 0.3:1/0.7:mid=0; text that is none of these as it is."""
    if ":" in text:
        parts = [part.partition(":") for part in text.split("/")]
        return [[read_number(fraction), read_amount(own)] for fraction, _, own in parts]
    if "=" not in text:
        return read_number(text)
    places = (part.partition("=") for part in text.split(","))
    return {place.strip(): read_number(number) for place, _, number in places}


def _piece(name: str, value: object) -> Piece:
    if not isinstance(value, (Mapping, list, tuple)):
        return as_float(name, value, RULE)
    places = value.items() if isinstance(value, Mapping) else value
    if not value:
        raise ValueError(f"{name} is {shown(value)}, which names no place: {RULE}")
    return tuple((str(place), as_float(f"{name} of {place}", own, RULE)) for place, own in places)


def _named(value: Any) -> bool:
    """Whether these are the pairs of a number by place."""
    return all(
        isinstance(part, (list, tuple)) and len(part) == 2 and isinstance(part[0], str)
        for part in value
    )

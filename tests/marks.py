"""Parameters of tests that run with `-m slow` only."""

import functools
from collections.abc import Collection, Iterable
from typing import Any

import pytest

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def some(values: Iterable[Any], common: Collection[Any]) -> list[Any]:
    """The values, of which those that are not common are slow."""
    return [value if value in common else slow(value) for value in values]

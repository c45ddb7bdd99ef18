"""Where scorers find images: the shards of a batch run, or photographs; a unit at a time.

Images are decoded in threads, one group ahead of the one that is being scored, so memory holds two
groups and one shard.
"""

import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reground_jax.batch.manifest import Entry
from reground_jax.batch.shards import read_shard
from reground_jax.batch.store import Store
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.data_sets.photographs import read_photograph

THREADS = 4  # that decode
T = TypeVar("T")


class Group(NamedTuple):
    """Images of one condition that are scored together, and their cases."""

    images: UInt8[np.ndarray, "B S S 3"]
    cases: Sequence[Case]


@runtime_checkable
class Gallery(Protocol):
    """Images by unit, each of a case; `folder` names it within the study."""

    @property
    def folder(self) -> str: ...

    def digests(self) -> dict[int, str]:
        """A checksum of each unit that there is."""
        ...

    def groups(self, unit: int, size: int) -> Iterator[Group]:
        """The unit's images in order, at most `size` at a time."""
        ...


@dataclass(frozen=True)
class Shards:
    """Finished units of a batch run. variants: how many images it has of each case."""

    folder: str
    store: Store
    entries: dict[int, Entry]
    cases: Sequence[Case]
    variants: int

    def digests(self) -> dict[int, str]:
        return {unit: entry.sha256 for unit, entry in self.entries.items()}

    def groups(self, unit: int, size: int) -> Iterator[Group]:
        entry = self.entries[unit]
        shard = read_shard(self.store, entry)
        lines = entry.images // self.variants

        def contents() -> Iterator[list[tuple[bytes, Case]]]:
            for _ in range(self.variants):  # no group has images of two of them
                left = lines
                while left:
                    part = list(itertools.islice(shard, min(size, left)))
                    left -= len(part)
                    yield [(content, self.cases[record["line"] - 1]) for record, content in part]

        return _decoded(contents(), lambda item: decode_png(item[0]))

    def images(self, unit: int, variant: int, lines: Sequence[int]) -> list[np.ndarray]:
        """Images of some lines (from 0) of the unit, in one variant."""
        entry, wanted = self.entries[unit], {line + 1: row for row, line in enumerate(lines)}
        count = entry.images // self.variants
        found: dict[int, np.ndarray] = {}
        for record, content in itertools.islice(
            read_shard(self.store, entry), variant * count, (variant + 1) * count
        ):
            if record["line"] in wanted:
                found[wanted[record["line"]]] = decode_png(content)
        return [found[row] for row in range(len(lines))]


@dataclass(frozen=True)
class Photographs:
    """The photographs of cases, as squares of `side` pixels."""

    folder: str
    cases: Sequence[Case]
    paths: Sequence[Path]  # one of each case
    side: int
    unit_lines: int

    def units(self) -> dict[int, int]:
        """How many photographs each unit has."""
        size = self.unit_lines
        return {
            start // size: min(size, len(self.cases) - start)
            for start in range(0, len(self.cases), size)
        }

    def digests(self) -> dict[int, str]:
        """Of names and sizes of the files."""
        return {unit: self._digest(unit) for unit in self.units()}

    def _of(self, unit: int) -> list[tuple[Path, Case]]:
        rows = slice(unit * self.unit_lines, (unit + 1) * self.unit_lines)
        return list(zip(self.paths[rows], self.cases[rows], strict=True))

    def _digest(self, unit: int) -> str:
        digest = hashlib.sha256(f"{self.side}\n".encode())
        for path, _ in self._of(unit):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def groups(self, unit: int, size: int) -> Iterator[Group]:
        pairs = self._of(unit)
        parts = (pairs[i : i + size] for i in range(0, len(pairs), size))
        return _decoded(parts, lambda pair: read_photograph(*pair, self.side))


def decode_png(content: bytes) -> UInt8[np.ndarray, "H W 3"]:
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB"))


def _decoded(
    parts: Iterable[list[tuple[Any, Case]]], decode: Callable[[tuple[Any, Case]], np.ndarray]
) -> Iterator[Group]:
    """Groups of (something to decode, its case), the next one being decoded meanwhile."""
    with ThreadPoolExecutor(THREADS, "decode") as pool:
        under_way = (([pool.submit(decode, i) for i in part], part) for part in parts if part)
        for futures, part in _one_ahead(under_way):
            images = np.stack([future.result() for future in futures])
            yield Group(images, [case for _, case in part])


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each taken when the one before it is."""
    before: list[T] = []
    for item in items:
        before.append(item)
        if len(before) > 1:
            yield before.pop(0)
    yield from before

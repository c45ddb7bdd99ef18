"""Checks an output: each id appears once per variant, images decode, checksums match."""

import contextlib
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from reground_jax.batch.index import Index, hash_of, read_index
from reground_jax.batch.manifest import Entry, finished, read_manifests, shard_path
from reground_jax.batch.run import Run, read_run
from reground_jax.batch.shards import read_shard
from reground_jax.batch.store import LOCKS, Store, open_store
from reground_jax.readers import reason_of


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where; `str` gives a sentence.

    damaged: the shard, or another part of the output, to remove so that it is made again. None if
    it is only missing, which the next `batch` fixes.
    """

    what: str
    unit: int | None = None
    lines: tuple[int, int] | None = None  # first and last of the input, from 1
    damaged: str | None = None

    def __str__(self) -> str:
        if self.unit is None or self.lines is None:
            return self.what
        return f"unit {self.unit} (lines {self.lines[0]} to {self.lines[1]}): {self.what}"


@dataclass
class Report:
    """What was found, and what the input asks for. An output without problems is whole."""

    units: int = 0
    images: int = 0
    expected_units: int = 0
    expected_images: int = 0
    problems: list[Problem] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "whole": not self.problems,
            "units": {"found": self.units, "expected": self.expected_units},
            "images": {"found": self.images, "expected": self.expected_images},
            "problems": [
                {"what": p.what, "unit": p.unit, "lines": p.lines, "damaged": p.damaged}
                for p in self.problems
            ],
        }


def verify(store: Store, *, on_unit: Callable[[int, int], None] | None = None) -> Report:
    """Reads the whole output. on_unit is called with the number of units checked and the total.

    Raises ValueError if `store` is not an output of `batch`.
    """
    run = read_run(store)
    report = Report()
    index = _index(store, run, report)
    if index is None:
        return report
    entries, _ = read_manifests(store)
    units = index.units(run.unit_lines)
    report.expected_units = len(units)
    report.expected_images = index.layouts * len(run.variants())
    for number, unit in enumerate(units, 1):
        _check_unit(store, run, index, unit, entries.get(unit, []), report)
        if on_unit is not None:
            on_unit(number, len(units))
    wanted = {shard_path(run.shards, unit) for unit in units}
    for path in _shards(store):
        if path not in wanted:
            what = f"{store.url}/{path} exists, but no line of the input asks for it"
            report.problems.append(Problem(what, damaged=path))
    return report


def repair(store: Store, problems: list[Problem]) -> list[str]:
    """Removes what is damaged, so that the next `batch` makes it again; returns the names removed.

    Raises ValueError if a process is working on the output.
    """
    names = sorted({problem.damaged for problem in problems if problem.damaged is not None})
    with contextlib.ExitStack() as locks:
        for owner in store.names(LOCKS) if names else []:
            locks.enter_context(open_store(store.url, owner=owner).lock("batch-verify --repair"))
        for name in names:
            store.remove(name)
    return names


def _index(store: Store, run: Run, report: Report) -> Index | None:
    """The index of the run's input; if it cannot be trusted, adds a problem and returns None."""
    try:
        stored = read_index(store)
    except FileNotFoundError as error:
        raise ValueError(f"{store.url} has no complete index: run `batch` again") from error
    except ValueError as error:
        what = f"the index in {store.url} is damaged: {error}"
    else:
        if stored.facts == {"sha256": run.input_sha256, **run.rules()}:
            return stored.index
        what = f"the index in {store.url} belongs to a different input than run.json"
    report.problems.append(Problem(f"{what}; run `batch` again", damaged="index.json"))
    return None


def _check_unit(
    store: Store, run: Run, index: Index, unit: int, entries: list[Entry], report: Report
) -> None:
    """Counts a unit, and adds any problem with it to the report."""
    first = unit * run.unit_lines
    of_unit = index.hashes[first : first + run.unit_lines]
    expected = np.tile(of_unit[of_unit != 0], len(run.variants())).tolist()
    entry = finished(store, entries)
    if entry is None:
        path = shard_path(run.shards, unit)
        damaged = path if entries and store.size(path) is not None else None
        what = "its shard is damaged or gone" if entries else "it has not been made yet"
    else:
        damaged = entry.path
        images, what = _check_shard(store, entry, expected)
        report.images += images
        if what is None:
            report.units += 1
            return
    lines = first + 1, first + len(of_unit)
    report.problems.append(Problem(what, unit, lines, damaged))


def _check_shard(store: Store, entry: Entry, expected: list[int]) -> tuple[int, str | None]:
    """How many of its images are valid, and what is wrong with the shard, if anything."""
    ids: list[int] = []
    try:
        for record, content in read_shard(store, entry):
            if hashlib.sha256(content).hexdigest() != record["sha256"]:
                raise ValueError(f"checksum mismatch: {record['file_name']}")
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
            ids.append(hash_of(record["id"]))
        if ids != expected:
            raise ValueError(
                f"its ids do not match its lines: {len(ids)} images, {len(expected)} expected"
            )
    except MemoryError:
        raise
    except Exception as error:  # Pillow and tarfile may raise anything for damaged bytes
        return len(ids), reason_of(error)
    return len(ids), None


def _shards(store: Store) -> list[str]:
    """The paths that look like shards."""
    found = [f"{folder}/{name}" for folder in ("images", "shards") for name in store.names(folder)]
    return [path for path in found if re.fullmatch(r"images/\d{9}|shards/\d{9}\.tar", path)]

"""Checks an output: every id once for each variant, every image decodes, every checksum fits."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from reground_jax.batch.index import hash_of
from reground_jax.batch.manifest import Entry, finished, read_manifests
from reground_jax.batch.run import Run, read_run
from reground_jax.batch.shards import read_shard
from reground_jax.batch.store import Store


@dataclass
class Report:
    """What was found. `problems` are sentences; an output without any is whole."""

    units: int = 0
    images: int = 0
    problems: list[str] = field(default_factory=list)


def verify(store: Store, *, on_unit: Callable[[int, int], None] | None = None) -> Report:
    """Reads the whole output. on_unit is told units checked, and of how many.

    Raises ValueError if `store` is no output of `batch`.
    """
    run = read_run(store)
    try:
        hashes = np.frombuffer(store.read("index.bin"), "<u8").reshape(-1, 2)[:, 1]
    except FileNotFoundError as error:
        raise ValueError(f"{store.url} has no index.bin: run `batch` again") from error
    entries, _ = read_manifests(store)
    report = Report()
    units = np.unique(np.flatnonzero(hashes) // run.unit_lines).tolist()
    for number, unit in enumerate(units, 1):
        found = entries.get(unit, [])
        entry = finished(store, found)
        if entry is None:
            state = "its shard is damaged or gone" if found else "it is not made yet"
            report.problems.append(f"unit {unit}: {state}; run `batch` again")
        else:
            report.units += 1
            _check_unit(store, run, entry, hashes, report)
        if on_unit is not None:
            on_unit(number, len(units))
    return report


def _check_unit(store: Store, run: Run, entry: Entry, hashes: np.ndarray, report: Report) -> None:
    """Adds to the report what is wrong with one shard."""
    first = entry.unit * run.unit_lines
    of_unit = hashes[first : first + run.unit_lines]
    expected = np.tile(of_unit[of_unit != 0], len(run.variants())).tolist()
    ids: list[int] = []
    try:
        for record, content in read_shard(store, entry):
            if hashlib.sha256(content).hexdigest() != record["sha256"]:
                raise ValueError(f"the checksum of {record['file_name']} is another")
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
            ids.append(hash_of(record["id"]))
        if ids != expected:
            raise ValueError("its ids are not those of its lines")
    except (ValueError, OSError, KeyError) as error:
        report.problems.append(
            f"unit {entry.unit}: {error}; remove {store.url}/{entry.path} and run `batch` again"
        )
    report.images += len(ids)

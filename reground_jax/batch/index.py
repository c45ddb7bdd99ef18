"""The first pass over the input: where each line starts, and which lines are layouts.

The index is 16 bytes a line: its offset in the file, and 64 bits of its id's hash, 0 for a line
without a layout. It is kept in the output (`index.json`, `index.bin`), with `rejected.jsonl` of
what is wrong with the other lines. Hosts that begin at a time write the same.
"""

import contextlib
import hashlib
import io
import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64

from reground_jax.batch.store import Store, open_input, write
from reground_jax.layout import check_max_boxes
from reground_jax.readers.lines import Line, as_lines, detect_form, parse_line, read_form

CHUNK = 1 << 20
SHOWN = 5  # ids in an error message


@dataclass(frozen=True)
class Source:
    """The input as JSONL: `lines` is a path or URL of it, and sha256 its checksum."""

    lines: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Index:
    """Rows are lines of the input, blank and rejected ones included."""

    offsets: UInt64[np.ndarray, "n"]
    hashes: UInt64[np.ndarray, "n"]  # of ids; 0 where a line has no layout
    bytes: int  # of the input
    rejected: int  # lines that are not blank and no layouts

    @property
    def layouts(self) -> int:
        return int(np.count_nonzero(self.hashes))

    def units(self, unit_lines: int) -> list[int]:
        """The numbers of the units that have a layout, ascending."""
        rows = np.flatnonzero(self.hashes)
        return np.unique(rows // unit_lines).tolist()

    def read(self, source: Source, start: int, stop: int) -> list[Line | None]:
        """The lines start..stop-1 (fewer at the end); None where there is no layout."""
        edges = np.append(self.offsets[start : stop + 1], np.uint64(self.bytes)).tolist()
        hashes = self.hashes[start:stop]
        edges = edges[: len(hashes) + 1]
        with open_input(source.lines) as file:
            file.seek(edges[0])
            text = file.read(edges[-1] - edges[0])
        parts = zip(edges[:-1], edges[1:], hashes, strict=True)
        return [parse_line(text[a - edges[0] : b - edges[0]]) if h else None for a, b, h in parts]


@contextlib.contextmanager
def open_source(path: str, form: str | None, captions: str | None) -> Iterator[Source]:
    """The input, translated into a temporary JSONL file if it is of another form.

    form: one of readers.lines.FORMS, or None to find out. Raises ValueError if it is not of it.
    """
    form = form or ("coco" if captions else detect_form(path))
    if form == "jsonl" and captions is None:
        yield Source(path, _checksum(path))
        return
    with tempfile.TemporaryDirectory(prefix="reground-jax-") as folder:
        lines = Path(folder) / "layouts.jsonl"
        with open(lines, "w", encoding="utf-8") as file:
            file.writelines(as_lines(read_form(path, form, captions)))
        yield Source(str(lines), _checksum(str(lines)))


def load_index(store: Store, source: Source, *, rules: dict[str, Any], strict: bool) -> Index:
    """The index of an input, from the store if one of the same input and rules is there.

    rules: keywords of `check_line`. strict: raise ValueError at the first line that is no layout.
    Raises ValueError if two lines have one id.
    """
    facts = {"sha256": source.sha256, **rules}
    index = _stored_index(store, facts)
    if index is not None and not (strict and index.rejected):
        return index
    with store.writing("rejected.jsonl") as rejected:
        index = build_index(source, rejected, rules=rules, strict=strict)
    check_duplicates(index, source)
    rows = np.stack([index.offsets, index.hashes], 1).astype("<u8")
    write(store, "index.bin", rows.tobytes())
    description = {
        "facts": facts,
        "lines": len(rows),
        "layouts": index.layouts,
        "rejected": index.rejected,
        "bytes": index.bytes,
    }
    write(store, "index.json", json.dumps(description, indent=1).encode())
    return index


def _stored_index(store: Store, facts: dict[str, Any]) -> Index | None:
    try:
        found = json.loads(store.read("index.json"))
        rows = np.frombuffer(store.read("index.bin"), "<u8").reshape(-1, 2)
    except (FileNotFoundError, ValueError):  # none yet, or damaged
        return None
    if found["facts"] != facts or len(rows) != found["lines"]:
        return None
    return Index(rows[:, 0], rows[:, 1], found["bytes"], found["rejected"])


def build_index(source: Source, rejected: Any, *, rules: dict[str, Any], strict: bool) -> Index:
    """Reads every line once; writes those that are no layouts to the binary file `rejected`."""
    offsets, hashes = array("Q"), array("Q")
    position = count = 0
    with io.BufferedReader(open_input(source.lines), CHUNK) as file:
        for number, text in enumerate(file, 1):
            value = 0
            try:
                line = parse_line(text)
                if line is not None:
                    check_line(line, **rules)
                    value = hash_of(line.id)
            except ValueError as error:
                if strict:
                    raise ValueError(f"line {number}: {error} (--strict)") from error
                count += 1
                entry = {
                    "line": number,
                    "reason": str(error),
                    "text": text.decode("utf-8", "replace"),
                }
                rejected.write(json.dumps(entry).encode() + b"\n")
            offsets.append(position)
            hashes.append(value)
            position += len(text)
    return Index(np.array(offsets, np.uint64), np.array(hashes, np.uint64), position, count)


def check_line(line: Line, *, max_boxes: int, seeds: int) -> None:
    """Raises ValueError if a layout does not fit the run. seeds: how many the run has."""
    check_max_boxes(line.layout, max_boxes)
    if line.seed is not None and seeds > 1:
        raise ValueError(
            f"{line.layout.name} has a seed of its own, and the run has {seeds}: remove it, or "
            "give one --seeds"
        )


def check_duplicates(index: Index, source: Source) -> None:
    """Raises ValueError that names the lines if two have one id."""
    order = np.argsort(index.hashes, kind="stable")
    ranked = index.hashes[order]
    same = np.flatnonzero((ranked[1:] == ranked[:-1]) & (ranked[1:] != 0))
    found = []
    for place in same.tolist():
        first, second = sorted(order[place : place + 2].tolist())
        (a,), (b,) = (index.read(source, row, row + 1) for row in (first, second))
        if a is not None and b is not None and a.id == b.id:  # else two ids of one hash
            found.append(f"{a.id!r} (lines {first + 1} and {second + 1})")
        if len(found) == SHOWN:
            break
    if found:
        more = ", ..." if len(same) > len(found) else ""
        raise ValueError(
            f"ids must be unique, but there are twice: {', '.join(found)}{more}; "
            "give each layout an id of its own"
        )


def hash_of(name: str) -> int:
    """64 bits of an id's SHA-256, never 0."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") or 1


def _checksum(path: str) -> str:
    with open_input(path) as file:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

"""The first pass over the input: where each line starts, and which lines are layouts.

The index has 16 bytes per line: the line's offset in the file, and 64 bits of its id's hash (0 for
a line without a layout). It is stored in the output as `index.bin`, with a checksum in
`index.json`, next to `rejected.jsonl`, which says what is wrong with invalid lines. Hosts that
start at the same time write identical files.
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

from reground_jax.basics.home import expand_home
from reground_jax.basics.json_text import parse_json
from reground_jax.batch.store import Store, open_input, write
from reground_jax.kinds import GroundingKind
from reground_jax.layout import check_max_boxes
from reground_jax.layout_kinds import check_kind, check_max_persons, check_pictures
from reground_jax.readers import Rejected, attempt
from reground_jax.readers.forms import read_layouts
from reground_jax.readers.lines import Line, as_lines, parse_line
from reground_jax.words import check_words

CHUNK = 1 << 20
SHOWN = 5  # ids in an error message
LONGEST_LINE = 1 << 24  # bytes: a longer line is rejected unread, so that memory stays bounded
KEPT = 1000  # bytes of a rejected line that rejected.jsonl shows


@dataclass(frozen=True)
class Source:
    """The input as JSONL: `lines` is its path or URL, and sha256 its checksum."""

    lines: str
    sha256: str

    @property
    def folder(self) -> Path | None:
        """What relative paths of pictures are relative to; None for a URL."""
        return None if "://" in self.lines else expand_home(self.lines).parent


@dataclass(frozen=True, eq=False)
class Index:
    """Rows are lines of the input, blank and rejected ones included."""

    offsets: UInt64[np.ndarray, "n"]
    hashes: UInt64[np.ndarray, "n"]  # of ids; 0 where a line has no layout
    bytes: int  # of the input
    rejected: int  # lines that are neither blank nor layouts

    @property
    def layouts(self) -> int:
        return int(np.count_nonzero(self.hashes))

    def units(self, unit_lines: int) -> list[int]:
        """The numbers of the units that have a layout, ascending."""
        rows = np.flatnonzero(self.hashes)
        return np.unique(rows // unit_lines).tolist()

    def first(self, lines: int) -> "Index":
        """The index of the first lines alone; `rejected` stays that of the whole input."""
        if lines >= len(self.offsets):
            return self
        return Index(
            self.offsets[:lines], self.hashes[:lines], int(self.offsets[lines]), self.rejected
        )

    def read(self, source: Source, start: int, stop: int) -> list[Line | None]:
        """Lines start..stop-1 (fewer at the end); None where there is no layout.

        Raises ValueError if the input has changed since it was indexed.
        """
        stop = min(stop, len(self.offsets))
        edges = np.append(self.offsets[start : stop + 1], np.uint64(self.bytes)).tolist()
        lines: list[Line | None] = []
        with open_input(source.lines) as file:
            for row, expected in enumerate(self.hashes[start:stop].tolist(), start):
                begin, end = edges[row - start : row - start + 2]
                if not expected:
                    lines.append(None)
                    continue
                file.seek(begin)
                text = file.read(end - begin)
                lines.append(_checked_line(text, source.folder, row, expected))
        return lines


def _checked_line(text: bytes, folder: Path | None, row: int, expected: int) -> Line:
    line = attempt("", parse_line, text, folder)
    if not isinstance(line, Line) or hash_of(line.id) != expected:
        raise ValueError(
            f"line {row + 1} of the input has changed since the run began: run the same command "
            "again, and leave the file alone while `batch` is running"
        )
    return line


@contextlib.contextmanager
def open_source(path: str, form: str | None, captions: str | None) -> Iterator[Source]:
    """The input, converted to a temporary JSONL file if it has another format.

    form: one of readers.forms.FORMS, or None to detect it. Raises ValueError if it does not fit.
    """
    layouts = read_layouts(path, form, captions)
    if layouts is None:
        yield Source(path, _checksum(path))
        return
    with tempfile.TemporaryDirectory(prefix="reground-jax-") as folder:
        lines = Path(folder) / "layouts.jsonl"
        with open(lines, "w", encoding="utf-8") as file:
            file.writelines(as_lines(layouts, path))
        yield Source(str(lines), _checksum(str(lines)))


def load_index(store: Store, source: Source, *, rules: dict[str, Any], strict: bool) -> Index:
    """The index of an input, taken from the store if it has one for the same input and rules.

    rules: keyword arguments of `check_line`. strict: raise ValueError at the first invalid line.
    Raises ValueError if two lines have the same id.
    """
    facts = {"sha256": source.sha256, **rules}
    index = _usable_index(store, facts)
    if index is not None and not (strict and index.rejected):
        return index
    with store.writing("rejected.jsonl") as rejected:
        index = build_index(source, rejected, rules=rules, strict=strict)
    check_duplicates(index, source)
    rows = np.stack([index.offsets, index.hashes], 1, dtype="<u8").view(np.uint8).ravel().data
    write(store, "index.bin", rows)
    description = {
        "facts": facts,
        "lines": len(index.offsets),
        "layouts": index.layouts,
        "rejected": index.rejected,
        "bytes": index.bytes,
        "index_sha256": hashlib.sha256(rows).hexdigest(),
    }
    write(store, "index.json", json.dumps(description, indent=1).encode())
    return index


@dataclass(frozen=True, eq=False)
class StoredIndex:
    """The index of an output. facts: the input and the rules that it was made with.

    checked: whether it has a checksum, which matched; outputs of the first versions have none.
    """

    index: Index
    facts: dict[str, Any]
    checked: bool


def read_index(store: Store) -> StoredIndex:
    """Raises FileNotFoundError, or ValueError if the index is damaged."""
    found = parse_json(store.read("index.json"))
    content = store.read("index.bin")
    counts = ("lines", "layouts", "rejected", "bytes")
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("facts"), dict)
        or any(type(found.get(name)) is not int for name in counts)
    ):
        raise ValueError("index.json is not what `batch` writes")
    if "index_sha256" in found and found["index_sha256"] != hashlib.sha256(content).hexdigest():
        raise ValueError("index.bin does not match its checksum in index.json")
    if len(content) != 16 * found["lines"]:
        raise ValueError(f"index.bin has {len(content)} bytes for {found['lines']} lines")
    rows = np.frombuffer(content, "<u8").reshape(-1, 2)
    index = Index(rows[:, 0], rows[:, 1], found["bytes"], found["rejected"])
    if index.layouts != found["layouts"]:
        raise ValueError(f"index.bin has {index.layouts} layouts, index.json {found['layouts']}")
    return StoredIndex(index, found["facts"], "index_sha256" in found)


def _usable_index(store: Store, facts: dict[str, Any]) -> Index | None:
    """The stored index; None if missing, damaged, without a checksum or of something else."""
    try:
        stored = read_index(store)
    except (FileNotFoundError, ValueError):
        return None
    if not stored.checked or stored.facts != facts:
        return None
    if stored.index.rejected and store.size("rejected.jsonl") is None:
        return None
    return stored.index


def build_index(source: Source, rejected: Any, *, rules: dict[str, Any], strict: bool) -> Index:
    """Reads every line once; writes those that are not layouts to the binary file `rejected`."""
    offsets, hashes = array("Q"), array("Q")
    position = count = 0
    with io.BufferedReader(open_input(source.lines), CHUNK) as file:
        for number, (text, length) in enumerate(_lines(file), 1):
            value = attempt(f"line {number}", _hash_of_line, text, length, source.folder, rules)
            if isinstance(value, Rejected):
                if strict:
                    raise ValueError(f"{value.source}: {value.reason} (--strict)")
                count += 1
                entry = {
                    "line": number,
                    "reason": value.reason,
                    "text": text[:KEPT].decode("utf-8", "replace"),
                }
                rejected.write(json.dumps(entry).encode() + b"\n")
                value = 0
            offsets.append(position)
            hashes.append(value)
            position += length
    return Index(np.array(offsets, np.uint64), np.array(hashes, np.uint64), position, count)


def _lines(file: io.BufferedReader) -> Iterator[tuple[bytes, int]]:
    """Each line and its length; only the start of a line that is too long."""
    while text := file.readline(LONGEST_LINE + 1):
        length, part = len(text), text
        if length > LONGEST_LINE:
            text = text[:KEPT]
        while not part.endswith(b"\n") and (part := file.readline(CHUNK)):
            length += len(part)
        yield text, length


def _hash_of_line(text: bytes, length: int, folder: Path | None, rules: dict[str, Any]) -> int:
    """`hash_of` the line's id, 0 for a blank line. Raises ValueError if it breaks the rules."""
    if length > LONGEST_LINE:
        raise ValueError(f"the line has {length} bytes, more than the limit of {LONGEST_LINE}")
    line = parse_line(text, folder)
    if line is None:
        return 0
    check_line(line, **rules)
    return hash_of(line.id)


def check_line(
    line: Line,
    *,
    max_boxes: int,
    seeds: int,
    words: bool = False,
    kind: GroundingKind = "text",
    inpainting: bool = False,
    persons: int = 8,
) -> None:
    """Raises ValueError if a layout does not fit the run, or a picture of it cannot be read.

    seeds: how many the run has. words: whether phrases must be part of their prompts. kind,
    inpainting, persons: of the model.
    """
    check_kind(line.layout, kind, inpainting)
    check_max_persons(line.layout, persons)
    check_max_boxes(line.layout, max_boxes)
    check_pictures(line.layout)
    if words:
        check_words(line.layout)
    if line.seed is not None and seeds > 1:
        raise ValueError(
            f"{line.layout.name} has its own seed, but the run has {seeds} seeds: remove it, or "
            "give only one seed with --seeds"
        )


def check_duplicates(index: Index, source: Source) -> None:
    """Raises ValueError that names the lines if two have the same id."""
    order = np.argsort(index.hashes, kind="stable")
    ranked = index.hashes[order]
    same = np.flatnonzero((ranked[1:] == ranked[:-1]) & (ranked[1:] != 0))
    found = []
    for place in same.tolist():
        first, second = sorted(order[place : place + 2].tolist())
        (a,), (b,) = (index.read(source, row, row + 1) for row in (first, second))
        if a is not None and b is not None and a.id == b.id:  # otherwise two ids share a hash
            found.append(f"{a.id!r} (lines {first + 1} and {second + 1})")
        if len(found) == SHOWN:
            break
    if found:
        more = ", ..." if len(same) > len(found) else ""
        raise ValueError(
            f"ids must be unique, but these appear twice: {', '.join(found)}{more}; "
            "give each layout its own id"
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

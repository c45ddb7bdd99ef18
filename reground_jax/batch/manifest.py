"""Which units are finished: JSON lines in `manifests/`, in separate files for each host.

A host's manifest is a series of files of at most SEGMENT entries each, because object stores cannot
append: the last file is rewritten (under a temporary name, then renamed) with every finished unit,
and a process never touches the files of an earlier one. A line that is not an entry, such as a
half-written one, is ignored, and its unit is made again.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from reground_jax.basics.json_text import parse_json
from reground_jax.batch.store import Store, write

FOLDER = "manifests"
SEGMENT = 256
SHARD_FORMATS = ("imagefolder", "webdataset")


@dataclass(frozen=True)
class Entry:
    """A finished unit: its path, its numbers of images and bytes, and a checksum.

    sha256 is that of the tar file, or of the folder's metadata.jsonl, which lists the images' own.
    """

    unit: int
    path: str
    images: int
    bytes: int
    sha256: str

    @classmethod
    def from_json(cls, value: Any) -> "Entry":
        """Raises ValueError unless `Manifest` writes such entries: paths are read and removed."""
        kinds = {"unit": int, "path": str, "images": int, "bytes": int, "sha256": str}
        if (
            not isinstance(value, dict)
            or {name: type(part) for name, part in value.items()} != kinds
            or value["path"] not in [shard_path(form, value["unit"]) for form in SHARD_FORMATS]
        ):
            raise ValueError("it is not an entry of a manifest")
        return cls(**value)


def shard_path(form: str, unit: int) -> str:
    """Where a unit's shard is."""
    return f"images/{unit:09d}" if form == "imagefolder" else f"shards/{unit:09d}.tar"


class Manifest:
    """The list of units that one process has finished."""

    def __init__(self, store: Store, host: int):
        self.store = store
        self.host = f"host-{host:04d}"
        found = (re.fullmatch(rf"{self.host}-(\d+)\.jsonl", name) for name in store.names(FOLDER))
        self.segment = max((int(match[1]) for match in found if match), default=-1)
        self.entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        if len(self.entries) % SEGMENT == 0:
            self.entries = []
            self.segment += 1
        self.entries.append(entry)
        lines = "".join(json.dumps(dataclasses.asdict(e)) + "\n" for e in self.entries)
        name = f"{FOLDER}/{self.host}-{self.segment:06d}.jsonl"
        write(self.store, name, lines.encode())


def read_manifests(store: Store) -> tuple[dict[int, list[Entry]], int]:
    """All hosts' entries by unit, and the number of lines that are not entries."""
    entries: dict[int, list[Entry]] = {}
    damaged = 0
    for name in store.names(FOLDER):
        if not name.endswith(".jsonl"):
            continue
        for line in store.read(f"{FOLDER}/{name}").splitlines():
            try:
                entry = Entry.from_json(parse_json(line))
            except ValueError:
                damaged += 1
            else:
                entries.setdefault(entry.unit, []).append(entry)
    return entries, damaged


def finished(store: Store, entries: list[Entry]) -> Entry | None:
    """The latest entry whose size matches the stored files; None if the unit is missing.

    A unit that was made again has several entries.
    """
    for entry in reversed(entries):
        if store.size(entry.path) == entry.bytes:
            return entry
    return None

"""Which units are finished: JSON lines in `manifests/`, written by each host for itself.

A host's manifest is a row of files of at most SEGMENT entries each, because object stores cannot
append: the last one is written anew (aside, then renamed) with every finished unit, and a process
never touches those of an earlier one. A line that is no entry, such as a half-written one, counts
for nothing: its unit is made again.
"""

import dataclasses
import json
from dataclasses import dataclass

from reground_jax.batch.store import Store, write

FOLDER = "manifests"
SEGMENT = 256


@dataclass(frozen=True)
class Entry:
    """A finished unit: where it is, how many images and bytes, and a checksum.

    sha256 is that of the tar file, or of the folder's metadata.jsonl, which has the images' own.
    """

    unit: int
    path: str
    images: int
    bytes: int
    sha256: str


class Manifest:
    """One process's list of the units that it finished."""

    def __init__(self, store: Store, host: int):
        self.store = store
        self.host = f"host-{host:04d}"
        earlier = [name for name in store.names(FOLDER) if name.startswith(self.host + "-")]
        # Names sort as numbers do: there are never 10**6 segments of one host.
        self.segment = int(earlier[-1].removesuffix(".jsonl").rpartition("-")[2]) if earlier else -1
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
    """All hosts' entries by unit, and the number of lines that are none."""
    entries: dict[int, list[Entry]] = {}
    damaged = 0
    for name in store.names(FOLDER):
        for line in store.read(f"{FOLDER}/{name}").splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                damaged += 1
            else:
                entries.setdefault(entry.unit, []).append(entry)
    return entries, damaged


def finished(store: Store, entries: list[Entry]) -> Entry | None:
    """The entry that the stored files fit in size, the latest first; None if the unit is not there.

    There are several where a unit was made again.
    """
    for entry in reversed(entries):
        if store.size(entry.path) == entry.bytes:
            return entry
    return None

"""Reads the directory of a zip with uncompressed entries, without unpacking anything.

A torch checkpoint is such a zip: its arrays are read in place. Python's `zipfile` is not used,
because it unpacks entries of any size, and loads any number of entries into memory.
Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3 (with zip64).
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from reground_jax.basics.wording import named

LARGEST_DIRECTORY = 2**25  # bytes; with 2,600 arrays it has 200 kB
MOST_ENTRIES = 100_000
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
ENTRY = struct.Struct("<4s6H3L5H2L")
HEADER = struct.Struct("<4s5H3L2H")
STORED, ENCRYPTED = 0, 1


class BadZip(ValueError):
    """The zip is damaged or not as torch writes it; the message says how."""


class Entry(NamedTuple):
    """One file in the zip."""

    header: int  # where its local header begins
    size: int  # bytes
    packed: int  # bytes in the zip
    plain: bool  # neither compressed nor encrypted
    crc: int
    end: int  # where the next entry begins, or the directory


class Zip:
    """An open zip and its entries by name, which do not overlap and lie inside the file."""

    def __init__(self, path: Path, file: io.BufferedIOBase) -> None:
        """Reads the directory. Raises BadZip."""
        self.path, self.file = path, file
        self.size = file.seek(0, os.SEEK_END)
        start, directory, count = self._find_directory()
        entries = sorted(self._entries(directory, count), key=lambda pair: pair[1].header)
        self.entries: dict[str, Entry] = {}
        ends = [entry.header for _, entry in entries[1:]] + [start]
        for (name, entry), end in zip(entries, ends, strict=False):
            if name in self.entries:
                raise BadZip(f"{path} is a damaged zip: it has two entries named {named(name)}")
            if entry.header + HEADER.size + len(name) + entry.packed > end:
                raise BadZip(
                    f"{path} is a damaged zip: {named(name)} overlaps what follows it; "
                    "copy or download it again"
                )
            self.entries[name] = entry._replace(end=end)

    def offset(self, name: str) -> int:
        """Where the content of an entry begins. Raises BadZip if it is not stored uncompressed."""
        entry = self.entries[name]
        if not entry.plain:
            raise BadZip(
                f"{self.path}: {named(name)} is compressed or encrypted, but torch stores entries "
                "uncompressed; unpack the zip and repack it with `zip -0 -r`"
            )
        # The local header has its own lengths of the name and of the padding (which torch uses to
        # align storages to 64 bytes).
        header = self._read(entry.header, HEADER.size)
        if header[:4] == b"PK\x03\x04":
            *_, name_length, extra_length = HEADER.unpack(header)
            offset = entry.header + HEADER.size + name_length + extra_length
            if offset + entry.size <= entry.end:
                return offset
        raise BadZip(
            f"{self.path}: the zip header of {named(name)} is damaged; copy or download it again"
        )

    def read(self, name: str, largest: int) -> bytes:
        """The content of an entry. Raises BadZip if it has more bytes than `largest`."""
        entry = self.entries[name]
        if entry.size > largest:
            raise BadZip(
                f"{self.path}: {named(name)} has {entry.size} bytes, but at most {largest} are "
                "read; save only the tensors, as safetensors"
            )
        content = self._read(self.offset(name), entry.size)
        if zlib.crc32(content) != entry.crc:
            raise BadZip(
                f"{self.path}: {named(name)} does not match its checksum; copy or download it again"
            )
        return content

    def _read(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)

    def _find_directory(self) -> tuple[int, bytes, int]:
        """Where the directory begins, its bytes, and the number of entries it should have."""
        tail_start = max(0, self.size - END.size - 2**16)  # a comment may follow
        tail = self._read(tail_start, self.size - tail_start)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + END.size > len(tail):
            raise BadZip(
                f"{self.path} is truncated: it starts like a torch zip, but the zip directory at "
                f"its end is missing ({self.size} bytes found); copy or download it again"
            )
        _, disk, _, _, count, length, start, _ = END.unpack_from(tail, at)
        end = tail_start + at
        if at >= LOCATOR64.size and tail.startswith(b"PK\x06\x07", at - LOCATOR64.size):
            _, _, end, _ = LOCATOR64.unpack_from(tail, at - LOCATOR64.size)
            record = self._read(min(end, self.size), END64.size)
            if len(record) < END64.size or record[:4] != b"PK\x06\x06":
                raise BadZip(f"{self.path} is a damaged zip: its zip64 record is not at its offset")
            *_, disk, _, _, count, length, start = END64.unpack(record)
        if disk or start + length > end:
            raise BadZip(
                f"{self.path} is a damaged zip: a directory of {length} bytes at {start} does not "
                "fit in the file; copy or download it again"
            )
        if length > LARGEST_DIRECTORY or count > MOST_ENTRIES:
            raise BadZip(
                f"{self.path} is not a checkpoint: a zip of {count} entries, with a directory of "
                f"{length} bytes; at most {MOST_ENTRIES} and {LARGEST_DIRECTORY} are read"
            )
        return start, self._read(start, length), count

    def _entries(self, directory: bytes, count: int) -> Iterator[tuple[str, Entry]]:
        at = 0
        for _ in range(count):
            if not directory.startswith(b"PK\x01\x02", at) or at + ENTRY.size > len(directory):
                raise BadZip(
                    f"{self.path} is a damaged zip: its directory has fewer entries than the "
                    f"{count} it declares; copy or download it again"
                )
            (_, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length,
             comment_length, _, _, _, header) = ENTRY.unpack_from(directory, at)  # fmt: skip
            name_end = at + ENTRY.size + name_length
            name = directory[at + ENTRY.size : name_end].decode("utf-8", "replace")
            extra = directory[name_end : name_end + extra_length]
            size, packed, header = _wide(extra, size, packed, header)
            plain = method == STORED and not flags & ENCRYPTED and size == packed
            yield name, Entry(header, size, packed, plain, crc, end=0)
            at = name_end + extra_length + comment_length


def _wide(extra: bytes, *numbers: int) -> list[int]:
    """An entry's numbers; those that need more than 32 bits are in its zip64 field."""
    wide = b""
    while len(extra) >= 4 and not wide:
        kind, length = struct.unpack_from("<2H", extra)
        wide = extra[4 : 4 + length] if kind == 1 else b""
        extra = extra[4 + length :]
    found = []
    for number in numbers:
        if number == 0xFFFFFFFF and len(wide) >= 8:
            number, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        found.append(number)
    return found

"""Zips around a torch pickle: bombs, lies in the directory, entries where none should be."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

from . import READS, Case
from .parts import FLOATS, program, tensor, torch_zip

GOOD = torch_zip()
END = GOOD.rfind(b"PK\x05\x06")
(DIRECTORY,) = struct.unpack_from("<L", GOOD, END + 16)


def header_of(entry: str) -> int:
    """Where an entry's own header begins in GOOD."""
    return GOOD.index(entry.encode()) - 30


def record_of(entry: str) -> int:
    """Where an entry's record in the directory of GOOD begins."""
    return GOOD.index(entry.encode(), DIRECTORY) - 46


def patched(*changes: tuple[int, bytes], content: bytes = GOOD) -> bytes:
    """A zip with other bytes at some offsets."""
    changed = bytearray(content)
    for at, new in changes:
        changed[at : at + len(new)] = new
    return bytes(changed)


def in_record(entry: str, at: int, new: bytes) -> bytes:
    """GOOD with other bytes in an entry's directory record; its local header stays as it was."""
    return patched((record_of(entry) + at, new))


def short(number: int) -> bytes:
    return struct.pack("<H", number)


def long(number: int) -> bytes:
    return struct.pack("<L", number)


def zip64(count: int, length: int, start: int, at: int | None = None) -> bytes:
    """GOOD with a zip64 end in place of its own, and where the locator says that it is."""
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, END if at is None else at, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    return GOOD[:END] + record + locator + end


def wide_entry(size: int, header: int) -> bytes:
    """GOOD with one more record, whose numbers are in a zip64 field."""
    extra = struct.pack("<2H3Q", 1, 24, size, size, header)
    numbers = (45, 45, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1, 3, len(extra), 0, 0, 0, 0, 2**32 - 1)
    record = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *numbers) + b"x/y" + extra
    directory = GOOD[DIRECTORY:END] + record
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 4, 4, len(directory), DIRECTORY, 0)
    return GOOD[:DIRECTORY] + directory + end


def many_entries(count: int) -> bytes:
    record = GOOD[record_of("x/data.pkl") : record_of("x/byteorder")]
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    directory = record * count
    start = DIRECTORY
    at = start + len(directory)
    record64 = (b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    return GOOD[:start] + directory + struct.pack("<4sQ2H2L4Q", *record64) + locator + end


def twice(first: str, second: str) -> bytes:
    """A zip with two entries of the same content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("y/data.pkl", program({"a": tensor()}))  # as long a name as x/data.pkl
        archive.writestr("x/data.pkl", program({"a": tensor()}))
        archive.writestr("x/data/0", FLOATS)
    return (
        buffer.getvalue()
        .replace(b"y/data.pkl", first.encode())
        .replace(b"x/data.pkl", second.encode())
    )


def sparse_pickle(path: Path, size: int = 2**29) -> None:
    """A stored pickle of 512 MB of zeros, which take no room on the disk."""
    name = b"x/data.pkl"
    head = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, size, size, len(name), 0)
    numbers = (20, 20, 0, 0, 0, 0, 0, size, size, len(name), 0, 0, 0, 0, 0, 0)
    record = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *numbers) + name
    start = len(head) + len(name) + size
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(record), start, 0)
    with open(path, "wb") as file:
        file.write(head + name)
        file.seek(start)
        file.write(record + end)


def bomb() -> bytes:
    """64 MB of zeros as a pickle, in 64 kB."""
    return torch_zip(bytes(2**26), compression=zipfile.ZIP_DEFLATED)


PICKLE, ORDER, ZERO = "x/data.pkl", "x/byteorder", "x/data/0"
COMPRESSED = "is compressed or encrypted"
DAMAGED = "is a damaged zip"
DEFLATED = zlib.compress(bytes(2**24))[2:-4]
FILES = {
    # bombs
    "bomb": (bomb(), COMPRESSED),
    "bomb-order": (torch_zip(more={"byteorder": b"little" + bytes(2**20)}), "at most 16 are read"),
    "bomb-deflated-as-stored": (torch_zip(DEFLATED), "its pickle is damaged"),
    "bomb-sparse": (sparse_pickle, "x/data.pkl has 536870912 bytes, but at most 268435456"),
    "bomb-says-4-gb": (in_record(PICKLE, 24, long(2**32 - 2)), "at most 268435456 are read"),
    "bomb-bzip2": (torch_zip(bytes(2**22), compression=zipfile.ZIP_BZIP2), COMPRESSED),
    "bomb-lzma": (torch_zip(bytes(2**22), compression=zipfile.ZIP_LZMA), COMPRESSED),
    "entries-100001": (many_entries(100_001), "a zip of 100001 entries"),
    "entries-alike": (many_entries(50_000), DAMAGED),
    # flags and methods
    "encrypted-pickle": (in_record(PICKLE, 8, short(1)), COMPRESSED),
    "encrypted-order": (in_record(ORDER, 8, short(1)), COMPRESSED),
    "encrypted-storage": (in_record(ZERO, 8, short(1)), COMPRESSED),
    "encrypted-strongly": (in_record(PICKLE, 8, short(0x41)), COMPRESSED),
    "method-8": (in_record(PICKLE, 10, short(8)), COMPRESSED),
    "method-8-storage": (in_record(ZERO, 10, short(8)), COMPRESSED),
    "method-9": (in_record(PICKLE, 10, short(9)), COMPRESSED),
    "method-99": (in_record(PICKLE, 10, short(99)), COMPRESSED),
    "method-65535": (in_record(PICKLE, 10, short(65535)), COMPRESSED),
    "big-endian": (torch_zip(more={"byteorder": b"big"}), "big-endian"),
    # sizes and places
    "size-larger": (in_record(PICKLE, 24, long(10**6)), COMPRESSED),
    "packed-larger": (in_record(PICKLE, 20, long(10**6)), DAMAGED),
    "both-larger": (in_record(PICKLE, 20, long(10**6) + long(10**6)), DAMAGED),
    "storage-larger": (in_record(ZERO, 20, long(10**6) + long(10**6)), DAMAGED),
    "size-smaller": (in_record(PICKLE, 20, long(9) + long(9)), "does not match its checksum"),
    "checksum": (in_record(PICKLE, 16, long(1)), "x/data.pkl does not match its checksum"),
    "checksum-order": (in_record(ORDER, 16, long(1)), "x/byteorder does not match its checksum"),
    "overlap-pickle": (in_record(PICKLE, 42, long(header_of(ORDER))), DAMAGED),
    "overlap-storage": (in_record(ZERO, 42, long(header_of(PICKLE))), DAMAGED),
    "overlap-a-little": (in_record(ZERO, 42, long(header_of(ZERO) - 1)), DAMAGED),
    "beyond-the-end": (in_record(ZERO, 42, long(10**6)), DAMAGED),
    "minus-1": (in_record(ZERO, 42, long(2**32 - 2)), DAMAGED),
    "in-the-directory": (in_record(ZERO, 42, long(DIRECTORY)), DAMAGED),
    "wide-beyond": (wide_entry(1, 2**63), DAMAGED),
    "wide-size": (wide_entry(2**63, DIRECTORY - 40), DAMAGED),
    "wide-2-to-64": (wide_entry(2**64 - 1, 2**64 - 1), DAMAGED),
    "no-header": (patched((header_of(PICKLE), b"XXXX")), "not a supported checkpoint"),
    "no-header-order": (patched((header_of(ORDER), b"XXXX")), "zip header of x/byteorder"),
    "no-header-storage": (patched((header_of(ZERO), b"XXXX")), "zip header of x/data/0"),
    "long-header-name": (patched((header_of(PICKLE) + 26, short(65535))), "zip header of x/data.p"),
    "long-header-extra": (patched((header_of(ZERO) + 28, short(65535))), "zip header of x/data/0"),
    "shifted-header": (patched((header_of(ZERO) + 28, short(1))), "zip header of x/data/0"),
    # the directory
    "end-alone": (b"PK\x05\x06" + bytes(18), "is an empty zip"),
    "end-at-once": (b"PK\x03\x04" + b"PK\x05\x06" + bytes(18), "a zip with 0 data.pkl in it"),
    "more-counted": (patched((END + 8, short(9) * 2)), "fewer entries than the 9 it declares"),
    "most-counted": (patched((END + 8, short(65535) * 2)), "fewer entries than the 65535"),
    "none-counted": (patched((END + 8, short(0) * 2)), "a zip with 0 data.pkl in it"),
    "one-counted": (patched((END + 8, short(1) * 2)), DAMAGED + "|has no storage"),
    "other-disk": (patched((END + 4, short(1))), DAMAGED),
    "directory-longer": (patched((END + 12, long(10**6))), DAMAGED),
    "directory-longest": (patched((END + 12, long(2**32 - 1))), DAMAGED),
    "directory-empty": (patched((END + 12, long(0))), "fewer entries than the 3"),
    "directory-shifted": (patched((END + 16, long(DIRECTORY - 1))), "fewer entries than the 3"),
    "directory-beyond": (patched((END + 16, long(10**6))), DAMAGED),
    "directory-garbage": (patched((DIRECTORY, bytes(46))), "fewer entries than the 3"),
    "record-names-long": (in_record(PICKLE, 28, short(65535)), "fewer entries than the 3"),
    "record-extra-long": (in_record(PICKLE, 30, short(65535)), "fewer entries than the 3"),
    "record-comment-long": (in_record(ZERO, 32, short(65535)), READS),  # nothing comes after it
    "zip64": (zip64(3, END - DIRECTORY, DIRECTORY), READS),
    "zip64-elsewhere": (zip64(3, END - DIRECTORY, DIRECTORY, at=0), "its zip64 record is not"),
    "zip64-beyond": (zip64(3, END - DIRECTORY, DIRECTORY, at=2**63), "its zip64 record is not"),
    "zip64-count": (zip64(2**63, END - DIRECTORY, DIRECTORY), "a zip of 9223372036854775808"),
    "zip64-length": (zip64(3, 2**63, DIRECTORY), DAMAGED),
    "zip64-start": (zip64(3, END - DIRECTORY, 2**64 - 1), DAMAGED),
    "comment": (GOOD[:-2] + short(4) + b"PK\x05\x06", "is truncated|" + DAMAGED),
    "comment-plain": (GOOD[:-2] + short(5) + b"hello", READS),
    "garbage-after": (GOOD + b"more", READS),
    # names
    "same-name": (twice("x/data.pkl", "x/data.pkl"), "two entries named x/data.pkl"),
    "two-pickles": (twice("y/data.pkl", "x/data.pkl"), "a zip with 2 data.pkl in it"),
    "no-pickle": (twice("y/info.txt", "x/info.txt"), "a zip with 0 data.pkl in it"),
    "escape-in-name": (twice("y/\x1b[2J.txt", "x/info.txt"), "a zip with 0 data.pkl in it"),
    "script": (torch_zip(more={"constants.pkl": b"."}), "is a TorchScript program"),
    "in-itself": (torch_zip(torch_zip()), "its pickle is damaged"),
}


def cases() -> list[Case]:
    found = [Case(f"{label}.ckpt", *case) for label, case in FILES.items()]
    for part in range(1, 16):  # cut anywhere
        kept = len(GOOD) * part // 16
        says = "is truncated: .* download it again"
        found.append(Case(f"cut-at-{kept}.ckpt", GOOD[:kept], says, "BadZip"))
    return found

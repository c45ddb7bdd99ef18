"""Reads a text from a PNG file (PNG specification, section 11.3.3) without decoding the image.

Pixels are skipped, so that the size of a stranger's image costs neither memory nor time.
"""

import struct
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from reground_jax.basics.small_files import check_regular

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")
MAX_CHUNKS = 10**6
LONGEST_KEYWORD = 79


class NotPNG(ValueError):
    """The file is not a PNG."""


def read_png_text(path: Path, keyword: str, limit: int) -> str | None:
    """The last text with this keyword, as other programs show it; None if there is none.

    Raises FileNotFoundError if there is no file, NotPNG if it is not a PNG, and ValueError whose
    message completes "cannot read FILE: " if it is truncated or damaged, or the text is longer than
    `limit` bytes.
    """
    size = check_regular(path)
    try:
        with open(path, "rb") as file:
            found = None
            for kind, body in _text_chunks(file, size, keyword, limit):
                found = _decoded(kind, body, limit)
            return found
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def _text_chunks(
    file: BufferedReader, size: int, keyword: str, limit: int
) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content, after the keyword, of the text chunks with this keyword."""
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise NotPNG("it is not a PNG")
    start = keyword.encode("latin-1") + b"\0"
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        behind = file.tell() + length + 4
        if not kind or behind > size:
            raise ValueError("it is truncated: its end is missing")
        if kind == b"IEND":
            return
        if kind in TEXT_KINDS and file.peek(LONGEST_KEYWORD + 1).startswith(start):
            if length > limit:
                raise ValueError(f"its {keyword!r} text is longer than {limit:,} bytes")
            body = file.read(length)
            if zlib.crc32(kind + body) != int.from_bytes(file.read(4), "big"):
                raise ValueError(f"its {keyword!r} text is damaged")
            yield kind, body.removeprefix(start)
        file.seek(behind)
    raise ValueError(f"it has more than {MAX_CHUNKS:,} chunks")


def _decoded(kind: bytes, body: bytes, limit: int) -> str:
    if kind == b"tEXt":
        return body.decode("latin-1")
    if kind == b"zTXt":
        return _inflated(body[1:], limit).decode("latin-1")  # after the compression method
    # iTXt: compression flag, compression method, language, translated keyword, text
    text = body[2:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        return (_inflated(text, limit) if body[:1] == b"\1" else text).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("its text is not UTF-8") from None


def _inflated(content: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(content, limit + 1)
    except zlib.error as error:
        raise ValueError(f"its text is damaged ({error})") from None
    if len(text) > limit:
        raise ValueError(f"its text is longer than {limit:,} bytes")
    if not stream.eof:
        raise ValueError("its text is truncated")
    return text

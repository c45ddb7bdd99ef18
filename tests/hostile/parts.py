"""Pickles, torch zips and safetensors written by hand, so that any part of them can be wrong."""

import io
import json
import struct
import zipfile
from typing import Any

PROTO = b"\x80\x02"
FLOATS = bytes(24)  # a storage of six float32


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<L", len(encoded)) + encoded


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def value(thing: Any) -> bytes:
    """Instructions that make a value; bytes are instructions themselves."""
    match thing:
        case bytes():
            return thing
        case bool():
            return b"\x88" if thing else b"\x89"
        case int():
            return integer(thing)
        case float():
            return b"G" + struct.pack(">d", thing)
        case str():
            return text(thing)
        case tuple():
            return b"(" + b"".join(map(value, thing)) + b"t"
        case list():
            return b"](" + b"".join(map(value, thing)) + b"e"
        case dict():
            items = (value(part) for pair in thing.items() for part in pair)
            return b"}(" + b"".join(items) + b"u"
    return b"N"


def call(module: str, attribute: str, *arguments: Any) -> bytes:
    return name(module, attribute) + value(arguments) + b"R"


def storage(key: Any = "0", numel: Any = 6, kind: bytes | None = None) -> bytes:
    kind = name("torch", "FloatStorage") if kind is None else kind
    return value(("storage", kind, key, "cpu", numel)) + b"Q"


def tensor(
    start: Any = 0, shape: Any = (2, 3), strides: Any = (3, 1), stored: bytes | None = None
) -> bytes:
    stored = storage() if stored is None else stored
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", stored, start, shape, strides, False, hooks)


def program(*instructions: Any) -> bytes:
    return PROTO + b"".join(map(value, instructions)) + b"."


def torch_zip(
    pickle: bytes | None = None,
    storages: dict[str, bytes] | None = None,
    more: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A torch checkpoint around a pickle; by default one of the array "a"."""
    pickle = program({"a": tensor()}) if pickle is None else pickle
    entries = {"data.pkl": pickle, "byteorder": b"little"} | (more or {})
    entries |= {
        f"data/{key}": content
        for key, content in ({"0": FLOATS} if storages is None else storages).items()
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for entry, content in entries.items():
            archive.writestr(zipfile.ZipInfo(f"x/{entry}"), content, compression)
    return buffer.getvalue()


def safetensors(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(content) if length is None else length
    return length.to_bytes(8, "little") + content + data

"""Files that are not checkpoints, and paths that are not files."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import tarfile
from pathlib import Path
from typing import Any

from . import Case
from .parts import FLOATS, safetensors, torch_zip

HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3438167536\n"
ARRAY = safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return buffer.getvalue()


def index(weight_map: Any) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


WEB = "is a web page"
SHARDS = "is not an index of shards"
FILES = {
    "empty.ckpt": (b"", r"is empty \(0 bytes\)"),
    "zeros.safetensors": (bytes(4096), "an unfinished download"),
    "one-zero.ckpt": (b"\0", "an unfinished download"),
    "pointer.safetensors": (POINTER, "git lfs pull"),
    "pointer.ckpt": (POINTER, "git lfs pull"),
    "page.safetensors": (HTML, WEB),
    "page.ckpt": (HTML, WEB),
    "page-mark.bin": (b"\xef\xbb\xbf\r\n " + HTML, WEB),
    "page-lower.bin": (b"<html>not found</html>", WEB),
    "page-blanks.bin": (b"\n" * 100 + HTML, WEB),
    "denied.bin": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', WEB),
    "text.ckpt": (b"Entry not found", "not a supported checkpoint"),
    "escape.ckpt": (b"\x1b[2J\x1b]0;", "not a supported checkpoint"),
    "random.ckpt": (b"\xde\xad\xbe\xef" * 100, "not a supported checkpoint"),
    "gguf.ckpt": (b"GGUF\x03\0\0\0" + bytes(100), "is GGUF"),
    "keras.ckpt": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is HDF5"),
    "onnx.ckpt": (b"\x08\x07\x12\x07pytorch" + bytes(100), "is ONNX"),
    "flax.ckpt": (b"\x82\xa7conv_in\x82" + bytes(100), "is msgpack"),
    "numpy.ckpt": (b"\x93NUMPY\x01\0" + bytes(100), "is a single NumPy array"),
    "gzip.ckpt": (gzip.compress(torch_zip()), "compressed with gzip"),
    "gzip-bomb.ckpt": (gzip.compress(bytes(2**24)), "compressed with gzip"),
    "bzip2.ckpt": (bz2.compress(FLOATS), "compressed with bzip2"),
    "xz.ckpt": (lzma.compress(FLOATS), "compressed with xz"),
    "zstd.ckpt": (b"\x28\xb5\x2f\xfd" + bytes(100), "compressed with zstd"),
    "7z.ckpt": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "is a 7z archive"),
    "rar.ckpt": (b"Rar!\x1a\x07\x01\0", "is a RAR archive"),
    "tar.ckpt": (_tar(), "is a tar archive"),
    "picture.ckpt": (b"\x89PNG\r\n\x1a\n", "is a PNG image"),
    "photo.ckpt": (b"\xff\xd8\xff\xe0", "is a JPEG image"),
    "pickle.ckpt": (pickle.dumps({"a": 1}, 2), "is a bare pickle"),
    "pickle-4.ckpt": (pickle.dumps({"a": 1}, 4), "is a bare pickle"),
    "config.json": (b'{"_class_name": "UNet2DConditionModel"}', SHARDS),
    "list.json": (b"[1, 2]", "not a supported checkpoint"),
    "cut.json": (b'{"weight_map": {', "is not JSON"),
    "deep.json": (b'{"weight_map": ' + b"[" * 100_000, "not JSON: its brackets are nested"),
    "twice.json": (b'{"weight_map": {"a": "x", "a": "y"}}', "the name 'a' appears twice"),
    "latin.json": (b'{"weight_map": "\xe9"}', "is not JSON: byte 16 is not UTF-8"),
    "map-list.json": (index(["a"]), SHARDS),
    "map-numbers.json": (index({"a": 1}), SHARDS),
    "map-nested.json": (index({"a": ["x"]}), SHARDS),
    "map-missing.json": (index({"a": "no.safetensors"}), "there is no file .*no.safetensors"),
    "map-itself.json": (index({"a": "map-itself.json"}), "is JSON, but a file of arrays"),
    "map-up.json": (index({"a": "../../../etc/passwd"}), "there is no file .*/passwd"),
    "map-dots.json": (index({"a": ".."}), "is a folder, not a file"),
    "map-nothing.json": (index({"a": ""}), "is a folder, not a file"),
    "map-zero-byte.json": (index({"a": "x\0y"}), SHARDS),
    "map-lines.json": (index({"a": "x\ny"}), SHARDS),
    "map-long.json": (index({"a": "x" * 10_000}), SHARDS),
    "map-other.json": (index({"b": "array.bin"}), "says that b is in array.bin, which does not"),
    "map-page.json": (index({"a": "page.safetensors"}), WEB),
    "map-large.json": (
        lambda path: _large(path, b'{"weight_map": {', 2**25),
        "it is larger than 16,777,216 bytes",
    ),
    "folder.safetensors": (Path.mkdir, "is a folder, not a file"),
    "pipe.safetensors": (os.mkfifo, "is a pipe, not a file"),
    "pipe.ckpt": (os.mkfifo, "is a pipe, not a file"),
    "socket.ckpt": (_socket, "is a socket, not a file"),
    "zero.ckpt": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "null.safetensors": (lambda path: path.symlink_to("/dev/null"), "is a device, not a file"),
    "gone.ckpt": (lambda path: path.symlink_to("nowhere"), "there is no file"),
    "missing.ckpt": (lambda path: None, "there is no file"),
    "loop.ckpt": (lambda path: path.symlink_to(path.name), "symbolic links"),
}


def _large(path: Path, start: bytes, size: int) -> None:
    path.write_bytes(start + b" " * (size - len(start)))


def cases() -> list[Case]:
    array = Case("array.bin", ARRAY, "reads")  # for the indices that name it
    found = [Case(name, *case) for name, case in FILES.items()]
    # Some of the same cases, for detecting what a path is.
    found += [case._replace(name=f"detect-{case.name}", opener="detect") for case in found
              if case.name.startswith(("pipe", "zero", "page", "pointer", "empty"))]  # fmt: skip
    return [array, *found]

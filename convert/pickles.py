"""Torch checkpoints (`torch.save`: .bin, .pth, .ckpt), read without torch and without running code.

A pickle is a program: it may import any name and call it. So names are looked up in an allow-list:
torch's tensor rebuilding and storages, OrderedDict and defaultdict, built-in containers and
numbers. OmegaConf's classes, which original GLIGEN checkpoints hold, become inert data. Any other
name is refused, before anything is called.

Since torch 1.6 the file is a zip: `<name>/data.pkl` is the pickle, and `<name>/data/<key>` is one
uncompressed storage of raw numbers, of which a tensor is a strided view.
"""

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from .stored import StoredArray, contiguous_strides, reach


class BadPickle(ValueError):
    """The file cannot be read; the message says why, and what to do."""


class RefusedPickle(BadPickle):
    """The pickle asks for a name that is not on the allow-list."""


class Inert:
    """Stands for an object of a foreign class: keeps what BUILD gives it, and does nothing."""

    def __init__(self, *args: Any) -> None:
        """Takes anything; only the state that follows is data."""


STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Python 2 called the module `__builtin__`, and had `long`; pickle protocol 2 still writes both.
BUILTINS = {
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "int": int,
    "long": int,
    "float": float,
    "bool": bool,
    "str": str,
    "bytes": bytes,
}


def load_torch(path: str | Path) -> Any:
    """What `torch.save` wrote to `path`: dicts, lists and numbers as they are, tensors as
    `StoredArray` (unread), OmegaConf nodes as inert objects (see `plain`).

    Raises RefusedPickle for a name outside the allow-list, and BadPickle for a file that is
    truncated, compressed, big-endian, of torch's old non-zip form, or no torch file at all.
    """
    unpickler = _Unpickler(_Archive(Path(path)))
    try:
        return unpickler.load()
    except BadPickle:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise BadPickle(
            f"{path}: the pickle in it is damaged ({type(error).__name__}: {error}); "
            "copy or download the file again"
        ) from error


def plain(value: Any) -> Any:
    """OmegaConf-shaped inert data as plain dicts, lists and values.

    A container node keeps its children in `_content`, a leaf its value in `_val`. A dict of exactly
    `_content` and `_metadata` is `vars()` of a node: the form of `config_dict` in original GLIGEN
    checkpoints. Raises ValueError for an inert object of another shape.
    """
    if isinstance(value, Inert):
        state = vars(value)
        for slot in ("_content", "_val"):
            if slot in state:
                return plain(state[slot])
        name = type(value).__name__
        raise ValueError(
            f"config holds a {name} with neither _content nor _val, but {sorted(state)}"
        )
    if isinstance(value, dict):
        if set(value) == {"_content", "_metadata"}:
            return plain(value["_content"])
        return {plain(key): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    return value


class _Archive:
    """The zip around a torch pickle: the pickle's bytes, and where each storage lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        _check_is_zip(path, self.size)
        try:
            with zipfile.ZipFile(path) as archive:
                self.entries = {entry.filename: entry for entry in archive.infolist()}
                self.prefix = self._prefix()
                self.pickle = archive.read(f"{self.prefix}data.pkl")
                order = f"{self.prefix}byteorder"
                if order in self.entries and archive.read(order) != b"little":
                    raise BadPickle(
                        f"{path} holds big-endian numbers; save it on a little-endian CPU"
                    )
        except zipfile.BadZipFile as error:
            raise BadPickle(
                f"{path} ({self.size} bytes) is a damaged or truncated zip ({error}); "
                "copy or download it again"
            ) from error

    def _prefix(self) -> str:
        names = [name for name in self.entries if name.split("/")[-1] == "data.pkl"]
        if len(names) != 1:
            raise BadPickle(
                f"{self.path} is a zip with {len(names)} data.pkl in it; a torch checkpoint has one"
            )
        return names[0].removesuffix("data.pkl")

    def locate(self, key: str, num_bytes: int) -> int:
        """The file offset of storage `key`, checked to hold `num_bytes` inside the file."""
        name = f"{self.prefix}data/{key}"
        entry = self.entries.get(name)
        if entry is None:
            raise BadPickle(f"{self.path} has no {name}, which its pickle refers to")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise BadPickle(
                f"{self.path}: {name} is compressed or encrypted, but torch stores arrays as they "
                "are; unpack the zip and pack it with `zip -0 -r`"
            )
        # The directory tells where the entry's own header is; that header's name and padding
        # (torch aligns storages to 64 bytes with it) have lengths of their own.
        with open(self.path, "rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise BadPickle(f"{self.path}: the zip header of {name} is damaged; download it again")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        offset = entry.header_offset + 30 + name_length + extra_length
        found = min(entry.file_size, self.size - offset)
        if found < num_bytes:
            raise BadPickle(
                f"{self.path} is truncated: {name} needs {num_bytes} bytes, found {found}; "
                "copy or download it again"
            )
        return offset


def _check_is_zip(path: Path, size: int) -> None:
    with open(path, "rb") as file:
        start = file.read(64)
    if start[:4] == b"PK\x03\x04":
        if not zipfile.is_zipfile(path):
            raise BadPickle(
                f"{path} is truncated: it starts as a torch zip, but the zip directory that should "
                f"end it is missing ({size} bytes found); copy or download it again"
            )
    elif start.startswith(b"version https://git-lfs"):
        raise BadPickle(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull`")
    elif start[:1] == b"\x80":
        raise BadPickle(
            f"{path} is a torch file of the old form, from before torch 1.6 (not a zip), which is "
            "not read here; with torch, save it again: "
            "torch.save(torch.load(path, map_location='cpu'), new_path)"
        )
    else:
        raise BadPickle(
            f"{path} ({size} bytes) is no torch checkpoint: it starts with {start[:8]!r}"
        )


class _Storage:
    """One run of numbers in the file."""

    def __init__(self, offset: int, dtype: np.dtype, length: int) -> None:
        self.offset, self.dtype, self.length = offset, dtype, length


class _Unpickler(pickle.Unpickler):
    """Unpickles with the allow-list.

    The stand-ins for torch's and OmegaConf's names are made anew for each file: a BUILD instruction
    could otherwise leave attributes on them that the next file would meet.
    """

    def __init__(self, archive: _Archive) -> None:
        super().__init__(io.BytesIO(archive.pickle))
        self._archive = archive
        self._dtypes: dict[Any, np.dtype] = {}
        self._found: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._found:
            self._found[module, name] = self._stand_in(module, name)
        return self._found[module, name]

    def _stand_in(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in BUILTINS:
            return BUILTINS[name]
        if module == "collections" and name in ("OrderedDict", "defaultdict"):
            return getattr(collections, name)
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return self._rebuilder()
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, requires_grad, backward_hooks: data
        if module == "torch" and name in STORAGES:
            kind = type(name, (), {})
            self._dtypes[kind] = np.dtype(STORAGES[name])
            return kind
        if module.split(".")[0] == "omegaconf" or (module, name) == ("typing", "Any"):
            return type(name, (Inert,), {})
        raise RefusedPickle(
            f"{self._archive.path} asks for {module}.{name}, which could run code and which no "
            "checkpoint of arrays needs: refused; save its tensors alone, as safetensors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ("storage", kind, key, device it was saved from, number of elements)."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise ValueError(f"persistent id {pid!r} is not a torch storage")
        _, kind, key, _, length = pid
        dtype = self._dtypes[kind]
        if not isinstance(key, str) or not isinstance(length, int) or length < 0:
            raise ValueError(f"storage {key!r} of {length!r} elements")
        return _Storage(self._archive.locate(key, length * dtype.itemsize), dtype, length)

    def _rebuilder(self) -> Any:
        path = self._archive.path

        def rebuild_tensor(storage, start, shape, strides, *unused) -> StoredArray:
            """torch._utils._rebuild_tensor_v2; requires_grad and hooks mean nothing here."""
            shape, strides = tuple(shape), tuple(strides)
            if len(shape) != len(strides) or any(
                not isinstance(n, int) or n < 0 for n in (start, *shape, *strides)
            ):
                raise ValueError(f"tensor at {start!r} of shape {shape!r}, strides {strides!r}")
            if start + reach(shape, strides) > storage.length:
                raise BadPickle(
                    f"{path}: a tensor of shape {shape} and strides {strides} at {start} reaches "
                    f"beyond its storage of {storage.length} elements; download the file again"
                )
            offset = storage.offset + start * storage.dtype.itemsize
            dense = strides == contiguous_strides(shape)
            return StoredArray(path, offset, storage.dtype, shape, None if dense else strides)

        return rebuild_tensor

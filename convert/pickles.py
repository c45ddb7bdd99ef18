"""Reads torch checkpoints (`torch.save`: .bin, .pth, .ckpt) without torch or running any code.

Since torch 1.6 the file is a zip: `<name>/data.pkl` is a pickle, and each `<name>/data/<key>` is an
uncompressed storage of raw numbers; tensors are strided views of storages. Before, it was a row of
pickles, the storages after them. A pickle is read as data (`pickle_data.Reader`), and may use the
names in `torch_names` and the few torch names below; any other name is refused before it is used.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from reground_jax.basics.wording import named, shown

from .forms import OLD_TORCH, RESAVE, form_of
from .pickle_data import BadPickle, Inert, Name, Reader, refused
from .stored import StoredArray, contiguous_strides, is_count, is_shape, reach
from .torch_names import known
from .zips import Zip

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
LARGEST_PICKLE = 2**28  # bytes; that of a Stable Diffusion checkpoint has 1 MB
LARGEST_OLD_PICKLES = 2**24  # bytes, read at once, storages among them
OLD_VERSION = 1001  # of the form before torch 1.6
MOST_REPEATS = 2**20  # elements that an expanded tensor may have beyond its storage's
# Limits for the configuration inside a checkpoint; GLIGEN's has 300 values, 8 levels deep.
MOST_VALUES = 100_000
DEEPEST = 50
LONGEST_TEXT, LONGEST_FIELD = 4096, 256  # characters


def load_torch(path: str | Path) -> Any:
    """Reads what `torch.save` wrote to `path`.

    Dicts, lists and numbers are returned as they are (sets as lists), tensors as `StoredArray`
    (unread), objects of other classes as `Inert` (see `plain`), and names as `Name`.

    Raises ValueError: RefusedPickle for a name that no checkpoint needs, BadPickle or BadZip for
    a file that is damaged, compressed, big-endian or made to exhaust its reader, and the error of
    `forms.form_of` for a file that torch did not write.
    """
    path = Path(path)
    if (form := form_of(path)) != "torch":
        raise BadPickle(f"{path} is not a torch checkpoint, but {form}")
    with open(path, "rb") as file:
        old = file.read(len(OLD_TORCH)) == OLD_TORCH
        file.seek(0)
        return _load_old(path, file) if old else _Zipped(path, file).load()


def plain(value: Any) -> Any:
    """Converts OmegaConf-shaped inert data to plain dicts, lists and values.

    A container node keeps its children in `_content`, a leaf its value in `_val`. A dict of exactly
    `_content` and `_metadata` is `vars()` of a node, like `config_dict` in original GLIGEN
    checkpoints. Raises ValueError for anything else, and for data too large to be a configuration,
    such as a list that contains itself, or the same list over and over.
    """
    count = 0

    def walk(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise ValueError(
                f"config is too large: more than {MOST_VALUES} values, or more than {DEEPEST} "
                "levels deep"
            )
        if isinstance(value, Inert):
            for slot in ("_content", "_val"):
                if slot in value.state:
                    return walk(value.state[slot], depth + 1)
            raise ValueError(
                f"config holds a {value.name.split('.')[-1]} with neither _content nor _val, but "
                f"{shown(list(value.state))}"
            )
        if isinstance(value, dict):
            if len(value) == 2 and set(value) == {"_content", "_metadata"}:
                return walk(value["_content"], depth + 1)
            if stray := [key for key in value if type(key) is not str or len(key) > LONGEST_FIELD]:
                raise ValueError(
                    f"config has the field {shown(stray[0])}; field names must be short strings"
                )
            return {key: walk(child, depth + 1) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [walk(child, depth + 1) for child in value]
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise ValueError(f"config has a string of {len(value)} characters, {shown(value)}")
        if value is not None and not isinstance(value, str | int | float):
            raise ValueError(f"config holds {shown(value)}, which is not a setting")
        return value

    return walk(value, 0)


class _Storage(NamedTuple):
    """A contiguous run of numbers in the file."""

    offset: int
    dtype: np.dtype
    length: int


def _load_old(path: Path, file: io.BufferedIOBase) -> Any:
    """A file from before torch 1.6.

    Pickles of a magic number, a version, facts of the machine, the content and the keys of the
    storages, and then those, each after its number of elements. Only after the content is known
    how large each is, so the content is read again with their places.
    """
    head = file.read(LARGEST_OLD_PICKLES)
    found: dict[str, tuple[int, int]] = {}  # elements, and bytes of each

    def note(key: str, length: int, size: int) -> int:
        if found.setdefault(key, (length, size)) != (length, size):
            raise ValueError(f"a storage {shown(key)} of two sizes")
        return 0

    reader = _Meaning(path, note).reader(head, len(OLD_TORCH))
    version, machine = reader.load(), reader.load()
    if version != OLD_VERSION:
        raise BadPickle(f"{path} has version {shown(version)} of torch's old form; {RESAVE}")
    if not (isinstance(machine, dict) and machine.get("little_endian") is True):
        raise BadPickle(f"{path} holds big-endian numbers; save it on a little-endian CPU")
    start = reader.at
    reader.load()
    keys = reader.load()
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise BadPickle(f"{path} is damaged: the keys of its storages are {shown(keys)}")
    if len(keys) != len(set(keys)) or set(keys) != found.keys():
        raise BadPickle(f"{path} is damaged: it lists other storages than it uses")
    places, at, end = {}, reader.at, file.seek(0, io.SEEK_END)
    for key in keys:
        length, size = found[key]
        file.seek(at)
        places[key] = at + 8
        at += 8 + length * size
        if int.from_bytes(file.read(8), "little") != length or at > end:
            raise BadPickle(
                f"{path} is truncated or damaged: its storage {shown(key)} should have {length} "
                "elements; copy or download it again"
            )
    return _Meaning(path, lambda key, length, size: places[key]).reader(head, start).load()


class _Zipped:
    """An open torch zip: its pickle, and its storages' offsets."""

    def __init__(self, path: Path, file: io.BufferedIOBase) -> None:
        self.path, self.zip = path, Zip(path, file)
        self.prefix = self._prefix()
        order = f"{self.prefix}byteorder"
        if order in self.zip.entries and self.zip.read(order, largest=16) != b"little":
            raise BadPickle(f"{path} holds big-endian numbers; save it on a little-endian CPU")
        self.offsets: dict[str, int] = {}

    def _prefix(self) -> str:
        names = [name for name in self.zip.entries if name.split("/")[-1] == "data.pkl"]
        if len(names) != 1:
            others = ", ".join(map(shown, list(self.zip.entries)[:3])) or "nothing"
            raise BadPickle(
                f"{self.path} is a zip with {len(names)} data.pkl in it; a torch checkpoint has "
                f"one (it holds {others})"
            )
        prefix = names[0].removesuffix("data.pkl")
        if f"{prefix}constants.pkl" in self.zip.entries:
            raise BadPickle(
                f"{self.path} is a TorchScript program, not a checkpoint; save the state_dict() of "
                "the model it was made from"
            )
        return prefix

    def load(self) -> Any:
        pickle = self.zip.read(f"{self.prefix}data.pkl", LARGEST_PICKLE)
        return _Meaning(self.path, self.locate).reader(pickle).load()

    def locate(self, key: str, length: int, size: int) -> int:
        """The file offset of a storage, checked to hold `length` elements of `size` bytes."""
        if len(key) > 256 or (name := f"{self.prefix}data/{key}") not in self.zip.entries:
            raise BadPickle(f"{self.path} has no storage {shown(key)}, which its pickle refers to")
        if key not in self.offsets:
            self.offsets[key] = self.zip.offset(name)
        if (found := self.zip.entries[name].size) < length * size:
            raise BadPickle(
                f"{self.path} is truncated: {named(name)} needs {length * size} bytes, found "
                f"{found}; copy or download it again"
            )
        return self.offsets[key]


class _Meaning:
    """What torch's names and storages in a pickle stand for."""

    def __init__(self, path: Path, locate: Callable[[str, int, int], int]) -> None:
        """locate: (key, number of elements, bytes of each) -> where in the file a storage is."""
        self.path, self.locate = path, locate
        self.dtypes: dict[Name, np.dtype] = {}
        self.names: dict[tuple[str, str], Name] = {}

    def reader(self, pickle: bytes, at: int = 0) -> Reader:
        """Of the pickle that begins there; each `load` reads the next."""
        return Reader(self.path, pickle, self.find, self.storage, at)

    def find(self, module: str, name: str) -> Name:
        """The Name of a module's name, the same object each time. Raises RefusedPickle."""
        if (module, name) not in self.names:
            found = self._torch_name(module, name) or known(module, name)
            if found is None:
                raise refused(self.path, f"refers to {named(f'{module}.{name}')}")
            self.names[module, name] = found
        return self.names[module, name]

    def _torch_name(self, module: str, name: str) -> Name | None:
        full = f"{module}.{name}"
        if module == "torch" and name in STORAGES:
            kind = Name(full)
            self.dtypes[kind] = np.dtype(STORAGES[name])
            return kind
        calls: dict[str, Callable[[tuple[Any, ...]], Any]] = {
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": _wrapped,
            "torch._utils._rebuild_parameter_with_state": _wrapped,
            "torch._tensor._rebuild_from_type_v2": self.typed,
        }
        return Name(full, call=calls[full]) if full in calls else None

    def storage(self, pid: Any) -> _Storage:
        """A storage: ("storage", kind, key, device it was saved from, number of elements).

        The old form has a sixth entry, which is None since torch 0.4.
        """
        sized = type(pid) is tuple and (len(pid) == 5 or (len(pid) == 6 and pid[5] is None))
        if not (sized and pid[0] == "storage"):
            raise ValueError(f"persistent id {shown(pid)} is not a torch storage")
        _, kind, key, _, length = pid[:5]
        dtype = self.dtypes.get(kind) if type(kind) is Name else None
        if dtype is None or type(key) is not str or not is_count(length):
            raise ValueError(f"a storage {shown(key)} of {shown(length)} {shown(kind)}")
        return _Storage(self.locate(key, length, dtype.itemsize), dtype, length)

    def tensor(self, arguments: tuple[Any, ...]) -> StoredArray:
        """torch._utils._rebuild_tensor_v2; requires_grad and hooks are ignored."""
        if len(arguments) < 4:
            raise ValueError(f"a tensor of {len(arguments)} arguments")
        storage, start, shape, strides = arguments[:4]
        if not (
            type(storage) is _Storage
            and type(shape) is type(strides) is tuple
            and is_shape(shape)
            and len(shape) == len(strides)
            and all(map(is_count, (start, *strides)))
        ):
            raise ValueError(
                f"a tensor at {shown(start)} of shape {shown(shape)}, strides {shown(strides)}"
            )
        if start + reach(shape, strides) > storage.length:
            raise BadPickle(
                f"{self.path}: a tensor of shape {shown(shape)} and strides {shown(strides)} at "
                f"{start} reaches beyond its storage of {storage.length} elements; download the "
                "file again"
            )
        if math.prod(shape) > storage.length + MOST_REPEATS:
            raise BadPickle(
                f"{self.path}: a tensor of shape {shown(shape)} repeats the {storage.length} "
                "elements of its storage; save it with contiguous()"
            )
        offset = storage.offset + start * storage.dtype.itemsize
        dense = strides == contiguous_strides(shape)
        return StoredArray(self.path, offset, storage.dtype, shape, None if dense else strides)

    def typed(self, arguments: tuple[Any, ...]) -> Any:
        """torch._tensor._rebuild_from_type_v2: a tensor with attributes, which are ignored."""
        match arguments:
            case (Name(call=self.tensor), Name(name="torch.Tensor"), tuple(inner), _):
                return self.tensor(inner)
        raise ValueError(f"a tensor of type {shown(arguments[1:2])}")


def _wrapped(arguments: tuple[Any, ...]) -> StoredArray:
    """torch._utils._rebuild_parameter: its tensor; requires_grad and hooks are ignored."""
    if arguments and type(arguments[0]) is StoredArray:
        return arguments[0]
    raise ValueError(f"a parameter of {shown(arguments[:1])}")

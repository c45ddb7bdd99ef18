"""The safetensors format: 8 bytes of header length, a JSON header, then raw arrays back to back.

Read here rather than by the safetensors package, whose NumPy API lacks bfloat16 and maps the whole
file into memory. Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from reground_jax.basics.atomic import writing
from reground_jax.basics.json_text import parse_json
from reground_jax.basics.wording import named, shown

from .forms import size_of
from .stored import StoredArray, is_count, is_shape

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# Bytes; the format allows 100 MB. With 2,600 arrays it has 300 kB, and parsed JSON can take 25
# times as much memory.
LONGEST_HEADER = 2**24


def read_header(path: str | Path) -> dict[str, StoredArray]:
    """Where each array of the file lies, by name, in file order; reads only the header.

    Raises ValueError, in one sentence with the file and the bytes expected and found, if the file
    is truncated or its header does not describe the bytes that follow.
    """
    path = Path(path)
    size = size_of(path)
    length, header, _ = _header(path, size)
    start = 8 + length
    arrays = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _begin(path, *item)):
        arrays[name] = _array(path, name, entry, start, expected_begin=end)
        end = entry["data_offsets"][1]
    if start + end != size:
        state = "truncated" if size < start + end else "longer than its header says"
        raise ValueError(
            f"{path} is {state}: {start + end} bytes expected, {size} found; "
            "copy or download it again"
        )
    return arrays


def write(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file, one array at a time. metadata: strings by name, kept in its header."""
    kinds = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        kind, shape = kinds[array.dtype], list(array.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # arrays are aligned
    with writing(Path(path)) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.tobytes())


def read_metadata(path: str | Path) -> dict[str, str]:
    """What the program that wrote the file says of it, under `__metadata__`; often nothing.

    Raises ValueError as `read_header` does, but does not check the arrays.
    """
    return _header(Path(path), size_of(path))[2]


def _header(path: Path, size: int) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The header's length in bytes, its arrays and its metadata."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > LONGEST_HEADER:
            raise ValueError(
                f"{path} ({size} bytes) is not a safetensors file: its first 8 bytes should be the "
                f"length of its header, at most {LONGEST_HEADER} bytes; copy or download it again"
            )
        text = file.read(length)
    if len(text) < length:
        raise ValueError(
            f"{path} is truncated: its header alone needs {8 + length} bytes, {size} found; "
            "copy or download it again"
        )
    try:
        header = parse_json(text, unique=True)
    except ValueError as error:
        raise ValueError(_corrupt(path, f"not JSON: {error}")) from error
    if not isinstance(header, dict):
        raise ValueError(_corrupt(path, f"a {type(header).__name__}, not a dict"))
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise ValueError(_corrupt(path, f"its __metadata__ is {shown(metadata)}, not strings"))
    return length, header, metadata


def _begin(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Sort key: begin and end of the array's bytes. Also checks the entry's form."""
    match entry:
        case {"dtype": str(), "shape": list(shape), "data_offsets": [begin, end]}:
            if is_shape(shape) and is_count(begin) and is_count(end):
                return begin, end
    raise ValueError(_corrupt(path, f"{named(name)} is described as {shown(entry)}"))


def _array(path: Path, name: str, entry: Any, start: int, expected_begin: int) -> StoredArray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(
            f"{path}: {named(name)} has dtype {named(entry['dtype'])}, which is not supported; "
            f"save it as one of {', '.join(DTYPES)}"
        )
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    needed = math.prod(shape) * dtype.itemsize
    if begin != expected_begin or end - begin != needed:
        raise ValueError(
            _corrupt(
                path,
                f"{named(name)} of {needed} bytes, which should begin at {expected_begin}, "
                f"is listed at {begin}..{end}",
            )
        )
    return StoredArray(path, start + begin, dtype, shape)


def _corrupt(path: Path, reason: str) -> str:
    return f"{path} has a corrupt safetensors header ({reason}); copy or download it again"

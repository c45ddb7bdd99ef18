"""Detects a file's format by its first bytes, since names can be wrong.

Downloads get renamed, and a pointer, a login page or half a file is saved under a model's name.
"""

import hashlib
from pathlib import Path
from typing import Literal

from reground_jax.basics.small_files import check_regular
from reground_jax.basics.wording import shown

Form = Literal["safetensors", "torch", "index"]

LOOKED_AT = 512  # bytes; a tar archive has its signature at byte 257
UTF8_MARK = b"\xef\xbb\xbf"
OLD_TORCH = (
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # a pickled number, before 1.6
)

AGAIN = "copy or download it again"
UNPACK = "unpack it, and use the checkpoint inside"
RESAVE = "save it again with torch: torch.save(torch.load(path, map_location='cpu'), new_path)"
# offset, bytes found there, what the file is and what to do
SIGNATURES = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (0, b"PK\x05\x06", f"an empty zip; {AGAIN}"),
    (0, b"GGUF", "GGUF, quantized weights for llama.cpp; use the safetensors they come from"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5 (Keras or MATLAB), which is not supported; use safetensors"),
    (0, b"\x93NUMPY", "a single NumPy array, without a name; save the state dict as safetensors"),
    (0, b"\x1f\x8b", f"compressed with gzip; {UNPACK}"),
    (0, b"BZh", f"compressed with bzip2; {UNPACK}"),
    (0, b"\xfd7zXZ\x00", f"compressed with xz; {UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"compressed with zstd; {UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {UNPACK}"),
    (0, b"Rar!", f"a RAR archive; {UNPACK}"),
    (257, b"ustar", f"a tar archive; {UNPACK} (if from torch before 0.4: {RESAVE})"),
    (0, b"\x89PNG", "a PNG image, not a checkpoint"),
    (0, b"\xff\xd8\xff", "a JPEG image, not a checkpoint"),
)  # fmt: skip


def size_of(path: str | Path) -> int:
    """The size of a regular file. Raises ValueError that names it if there is no such file."""
    try:
        return check_regular(path)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; check the path") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; check the path") from error


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def form_of(path: str | Path) -> Form:
    """The format of a file of arrays, or "index" for the JSON that lists shards.

    For any other file, raises ValueError that says what it is and what to do.
    """
    size = size_of(path)
    with open(path, "rb") as file:
        start = file.read(LOOKED_AT)
    # Eight bytes of length, the last of which are zero below a terabyte, then JSON. Checked first,
    # because the length may begin like another format.
    if start[5:9] == b"\0\0\0{":
        return "safetensors"
    if start.startswith((b"PK\x03\x04", OLD_TORCH)):
        return "torch"
    text = start.removeprefix(UTF8_MARK).lstrip()
    if text.startswith(b"{"):
        return "index"
    if start[8:9] == b"{":
        return "safetensors"
    raise ValueError(f"{path} is {_otherwise(start, text, size)}")


def _otherwise(start: bytes, text: bytes, size: int) -> str:
    """What an unsupported file is, and the way out."""
    for offset, signature, meaning in SIGNATURES:
        if start.startswith(signature, offset):
            return meaning
    if not start:
        return f"empty (0 bytes); {AGAIN}"
    if not start.strip(b"\0"):
        return f"all zeros at its start, as left by an unfinished download; {AGAIN}"
    if text.startswith(b"<"):
        return (
            "a web page (HTML or XML), which sites send instead of a file that needs a login or "
            "does not exist; log in, and download the file itself"
        )
    if start[0] == 0x80:
        return "a bare pickle, not a torch checkpoint; save its tensors as safetensors"
    if start[0] == 0x08 and start[2:3] == b"\x12":  # protobuf: a version, then the producer's name
        return "ONNX, a program with its weights; use the checkpoint that it was exported from"
    if b"\x81" <= start[:1] <= b"\x8f" and b"\xa0" <= start[1:2] <= b"\xd9":  # a map of strings
        return "msgpack (Flax); use the same model's safetensors"
    return (
        f"not a supported checkpoint (safetensors or torch): its {size} bytes start with "
        f"{shown(start[:8])}"
    )

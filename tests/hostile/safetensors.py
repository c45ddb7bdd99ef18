"""Safetensors files whose header lies."""

from typing import Any

from . import READS, Case
from .parts import safetensors

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}  # two float32 are 8 bytes
TEXT = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def entry(**changes: Any) -> bytes:
    return safetensors({"x": ENTRY | changes})


def raw(old: bytes, new: bytes) -> bytes:
    """A good header with some text replaced, possibly in ways that json.dumps never writes."""
    return safetensors(TEXT.replace(old, new))


CORRUPT = "corrupt safetensors header"
DESCRIBED = CORRUPT + r" \(x is described as"
NO_FILE = "not a safetensors file: its first 8 bytes"
FILES = {
    "good": (safetensors(TEXT), READS),
    # the length of the header
    "length-1": (safetensors(TEXT, length=1), "not JSON"),
    "length-9-more": (safetensors(TEXT, length=len(TEXT) + 9), "truncated: its header alone"),
    "length-1-more": (safetensors(TEXT, length=len(TEXT) + 1), "not JSON"),
    "length-16-mb": (safetensors(TEXT, length=2**24), "truncated: its header alone"),
    "length-1-gb": (safetensors(TEXT, length=2**30), NO_FILE),
    "length-1-gb-sparse": (
        lambda path: _sparse(path, safetensors(TEXT, length=2**30), 2**31),
        NO_FILE,
    ),
    "length-2-to-39": (safetensors(TEXT, length=2**39), NO_FILE),
    "length-2-to-62": (safetensors(TEXT, length=2**62), NO_FILE),
    "length-2-to-63": (safetensors(TEXT, length=2**63), NO_FILE),
    "length-2-to-64": (safetensors(TEXT, length=2**64 - 1), NO_FILE),
    "length-0": (safetensors(TEXT, length=0), "not JSON"),
    "length-alone": (safetensors(b"", b""), "is all zeros at its start"),
    # JSON
    "deep": (safetensors(b'{"x":' + b"[" * 100_000), "not JSON: its brackets are nested"),
    "deep-dicts": (safetensors(b'{"x":' * 100_000), "not JSON: its brackets are nested"),
    "lists": (safetensors(b'{"x":[' + b"[]," * 5_000_000 + b"0]}"), DESCRIBED),
    "digits": (safetensors(b'{"x":' + b"1" * 10**6 + b"}"), "not JSON"),
    "digits-float": (safetensors(b'{"x":1.' + b"1" * 10**7 + b"}"), DESCRIBED),
    "names": (
        safetensors(b"{" + b",".join(b'"%d":0' % n for n in range(10**6)) + b"}"),
        "'?0'? is described as 0",
    ),
    "cut": (safetensors(TEXT[:-1]), "not JSON"),
    "more": (safetensors(TEXT + b"}"), "not JSON"),
    "latin-1": (safetensors(TEXT.replace(b"x", b"\xe9")), "not JSON: byte 2 is not UTF-8"),
    "control": (safetensors(TEXT.replace(b"x", b"\n")), "not JSON"),
    "twice": (safetensors(TEXT[:-1] + b"," + TEXT[1:]), "the name 'x' appears twice"),
    "field-twice": (raw(b'"shape"', b'"shape":[9],"shape"'), "the name 'shape' appears twice"),
    "blanks-after": (safetensors(TEXT + b" " * 10), READS),
    # what it describes
    "number": (safetensors({"x": 3}), DESCRIBED),
    "text": (safetensors({"x": "F32"}), DESCRIBED),
    "null": (safetensors({"x": None}), DESCRIBED),
    "list": (safetensors({"x": ["F32", [2], [0, 8]]}), DESCRIBED),
    "empty": (safetensors({"x": {}}), DESCRIBED),
    "no-shape": (safetensors({"x": {"dtype": "F32", "data_offsets": [0, 8]}}), DESCRIBED),
    "no-dtype": (safetensors({"x": {"shape": [2], "data_offsets": [0, 8]}}), DESCRIBED),
    "no-offsets": (safetensors({"x": {"dtype": "F32", "shape": [2]}}), DESCRIBED),
    "metadata-list": (safetensors({"__metadata__": [], "x": ENTRY}), "its __metadata__ is"),
    "metadata-number": (safetensors({"__metadata__": 1, "x": ENTRY}), "its __metadata__ is"),
    "metadata-null": (safetensors({"__metadata__": None, "x": ENTRY}), "its __metadata__ is"),
    "metadata-of-dicts": (
        safetensors({"__metadata__": {"a": {"b": "c"}}, "x": ENTRY}),
        "its __metadata__ is",
    ),
    "metadata-of-numbers": (
        safetensors({"__metadata__": {"step": 3}, "x": ENTRY}),
        "its __metadata__ is",
    ),
    "dtype-number": (entry(dtype=3), DESCRIBED),
    "dtype-lower": (entry(dtype="f32"), "has dtype f32, which is not supported"),
    "dtype-f8": (entry(dtype="F8_E4M3"), "has dtype F8_E4M3, which is not supported"),
    "dtype-long": (entry(dtype="F" * 10**6), "has dtype 'FFF"),
    "dtype-lines": (entry(dtype="F\n32"), r"has dtype 'F\\n32'"),
    "dtype-smaller": (entry(dtype="F16"), "x of 4 bytes, which should begin at 0"),
    "shape-number": (entry(shape=2), DESCRIBED),
    "shape-text": (entry(shape="2"), DESCRIBED),
    "shape-null": (entry(shape=[None]), DESCRIBED),
    "shape-float": (entry(shape=[2.0]), DESCRIBED),
    "shape-true": (entry(shape=[True, 2]), DESCRIBED),
    "shape-minus": (entry(shape=[-2]), DESCRIBED),
    "shape-minus-twice": (entry(shape=[-1, -2]), DESCRIBED),
    "shape-list": (entry(shape=[[2]]), DESCRIBED),
    "shape-2-to-62": (entry(shape=[2**62]), DESCRIBED),
    "shape-2-to-64": (entry(shape=[2**64]), DESCRIBED),
    "shape-wraps": (entry(shape=[2**32, 2**32, 2]), DESCRIBED),
    "shape-0-and-much": (entry(shape=[0, 2**58, 2**58], data_offsets=[0, 0]), DESCRIBED),
    "shape-4000-digits": (raw(b"[2]", b"[" + b"9" * 4000 + b"]"), DESCRIBED),
    "shape-many-digits": (raw(b"[2]", b"[" + b",".join([b"9" * 4000] * 2000) + b"]"), DESCRIBED),
    "shape-infinity": (raw(b"[2]", b"[Infinity]"), DESCRIBED),
    "shape-nan": (raw(b"[2]", b"[NaN]"), DESCRIBED),
    "shape-1e400": (raw(b"[2]", b"[1e400]"), DESCRIBED),
    "shape-33-axes": (entry(shape=[1] * 32 + [2]), DESCRIBED),
    "shape-10000-axes": (entry(shape=[1] * 10_000), DESCRIBED),
    "shape-larger": (entry(shape=[3]), "x of 12 bytes, which should begin at 0"),
    "offsets-number": (entry(data_offsets=8), DESCRIBED),
    "offsets-one": (entry(data_offsets=[8]), DESCRIBED),
    "offsets-three": (entry(data_offsets=[0, 8, 16]), DESCRIBED),
    "offsets-texts": (entry(data_offsets=["0", "8"]), DESCRIBED),
    "offsets-floats": (entry(data_offsets=[0.0, 8.0]), DESCRIBED),
    "offsets-false": (entry(data_offsets=[False, 8]), DESCRIBED),
    "offsets-minus": (entry(data_offsets=[-8, 0]), DESCRIBED),
    "offsets-reversed": (entry(data_offsets=[8, 0]), "which should begin at 0"),
    "offsets-beyond": (entry(data_offsets=[2**40, 2**40 + 8]), "which should begin at 0"),
    "offsets-2-to-64": (entry(data_offsets=[0, 2**64]), DESCRIBED),
    "offsets-overlap": (safetensors({"x": ENTRY, "y": ENTRY}), "y of 8 bytes, .* begin at 8"),
    "offsets-gap": (entry(data_offsets=[8, 16]), "which should begin at 0"),
    "data-missing": (safetensors(TEXT, bytes(7)), "is truncated"),
    "data-none": (safetensors(TEXT, b""), "is truncated"),
    "data-more": (safetensors(TEXT, bytes(9)), "longer than its header says"),
    "data-much-more": (lambda path: _sparse(path, safetensors(TEXT), 2**40), "longer than its"),
    "array-of-8-tb": (
        lambda path: _sparse(path, entry(shape=[2**41], data_offsets=[0, 2**43]), None),
        "is truncated",
    ),
    "name-lines": (raw(b'"x"', b'"x\\ny"'), r"an array named 'x\\ny'"),
    "name-escape": (raw(b'"x"', b'"\\u001b[2J"'), "an array named"),
    "name-surrogate": (raw(b'"x"', b'"\\ud83d"'), "an array named"),
    "name-long": (raw(b'"x"', b'"' + b"x" * 10_000 + b'"'), "an array named"),
}


def _sparse(path, start: bytes, size: int | None) -> None:
    """A file that begins with `start` and goes on with zeros, which take no room on the disk."""
    with open(path, "wb") as file:
        file.write(start)
        if size is not None:
            file.truncate(size)


def cases() -> list[Case]:
    found = [Case(f"{label}.safetensors", *case) for label, case in FILES.items()]
    nothing = Case("nothing.safetensors", safetensors({}, b""), "it has 0 arrays", opener="detect")
    return [*found, nothing]

"""Ways to open a file in a test's child process: the package's, and careless ones."""

import os
import pickle
import zipfile
from pathlib import Path

from reground_jax.convert import lora, sources
from reground_jax.convert.keys import Leaf


def open_tensors(path: str) -> None:
    """All arrays of a file."""
    tensors = sources.open_tensors(path)
    for name in tensors.keys():
        tensors.read(name)


def detect(path: str) -> None:
    sources.detect(path)


def open_original(path: str) -> None:
    parts, _ = sources.open_original(path)
    for part in parts.values():
        for name in part.keys():
            part.read(name)


def read_lora(path: str) -> None:
    """What a LoRA adds to a model of one matrix."""
    leaf = Leaf("unet/m/kernel", ("m.weight",), (2, 2))
    for delta in lora.read(Path(path), [leaf])["unet"].values():
        delta.array((2, 2))


def naive(path: str) -> None:
    """Python's own unpickler, which does what the file says."""
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("x/data.pkl"))


def waits(path: str) -> None:
    """A reader that opens whatever it is given."""
    with open(path, "rb") as file:
        file.read(1)


def prints(path: str) -> None:
    raise ValueError("a sentence\nand another")


def ends(path: str) -> None:
    os._exit(3)

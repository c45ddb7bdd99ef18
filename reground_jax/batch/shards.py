"""Output shards, one per unit: a folder of images with metadata.jsonl, or a WebDataset tar.

imagefolder  `images/000000012/` with NAME.png and metadata.jsonl, one line per image, for
             `datasets.load_dataset("imagefolder", data_dir="OUT/images")`; its "layout" and
             "settings" are JSON strings
webdataset   `shards/000000012.tar` with NAME.png and NAME.json

Nothing in a shard depends on when or where it was made: regenerating a unit gives identical bytes.
Images are added in any order; in the shard they are sorted by variant, then by line.
"""

import abc
import contextlib
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reground_jax.basics.json_text import parse_json
from reground_jax.batch.manifest import Entry, shard_path
from reground_jax.batch.run import Run
from reground_jax.batch.store import Put, Store
from reground_jax.images import Recipe, encode_png

METADATA = "metadata.jsonl"
SPOOLED = 1 << 26  # bytes of a tar file's images that wait for their turn in memory, else on disk
Record = dict[str, Any]
Place = tuple[int, int]  # variant and line


@dataclass(frozen=True)
class Made:
    """An encoded image, its metadata, and where it stands in its shard."""

    record: Record
    content: bytes
    place: Place


def make(
    image: UInt8[np.ndarray, "H W 3"], line: int, variant: int, recipe: Recipe, run: Run
) -> Made:
    """Encodes an image of `line` (from 0). PNGs contain their recipe, like those of `generate`."""
    if run.image == "png":
        content = encode_png(image, recipe)
    else:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format=run.image, quality=run.quality)
        content = buffer.getvalue()
    record = {
        "file_name": f"{run.key(line, variant)}.{run.image}",
        "id": recipe.layout.id,
        "line": line + 1,
        "prompt": recipe.layout.prompt,
        "wiring": recipe.settings.wiring,
        "gamma": recipe.settings.to_json()["gamma"],
        "sha256": hashlib.sha256(content).hexdigest(),
        **recipe.to_json(),
    }
    return Made(record, content, (variant, line))


class Shard(abc.ABC):
    """A shard that is being written. `entry` is complete once it is closed."""

    def __init__(self, unit: int, path: str):
        self.unit, self.path = unit, path
        self.images = self.bytes = 0
        self.digest = hashlib.sha256()

    @abc.abstractmethod
    def add(self, made: Made) -> None: ...

    @abc.abstractmethod
    def close(self) -> None: ...

    @property
    def entry(self) -> Entry:
        return Entry(self.unit, self.path, self.images, self.bytes, self.digest.hexdigest())


class ImageFolder(Shard):
    def __init__(self, unit: int, path: str, put: Put):
        super().__init__(unit, path)
        self.put = put
        self.lines: dict[Place, bytes] = {}

    def add(self, made: Made) -> None:
        self._put(made.record["file_name"], made.content)
        # A column of `datasets` must have the same type in all files, and a list that is empty
        # throughout a file has none, so nested values are stored as JSON strings.
        row = {
            name: json.dumps(value) if isinstance(value, dict) else value
            for name, value in made.record.items()
        }
        self.lines[made.place] = json.dumps(row).encode() + b"\n"
        self.images += 1

    def close(self) -> None:
        metadata = b"".join(line for _, line in sorted(self.lines.items()))
        self.digest.update(metadata)
        self._put(METADATA, metadata)

    def _put(self, name: str, content: bytes) -> None:
        self.put(name, content)
        self.bytes += len(content)


class Tar(Shard):
    def __init__(self, unit: int, path: str, file: BinaryIO):
        super().__init__(unit, path)
        self.file = file
        # A stream needs no seeking; USTAR headers hold nothing but what is set below.
        self.tar = tarfile.open(fileobj=self, mode="w|", format=tarfile.USTAR_FORMAT)  # type: ignore[call-overload]
        # Members that wait until all are there, to be sorted: name, start and size in the spool.
        self.spool = tempfile.SpooledTemporaryFile(SPOOLED)
        self.waiting: dict[Place, list[tuple[str, int, int]]] = {}

    def write(self, content: bytes) -> int:
        """Called by tarfile."""
        self.digest.update(content)
        self.bytes += len(content)
        return self.file.write(content)

    def add(self, made: Made) -> None:
        name = made.record["file_name"]
        text = f"{name.rpartition('.')[0]}.json", json.dumps(made.record).encode()
        self.waiting[made.place] = [
            self._spooled(*member) for member in ((name, made.content), text)
        ]
        self.images += 1

    def _spooled(self, name: str, content: bytes) -> tuple[str, int, int]:
        start = self.spool.tell()
        self.spool.write(content)
        return name, start, len(content)

    def close(self) -> None:
        with self.spool:
            for _, members in sorted(self.waiting.items()):
                for name, start, size in members:
                    self.spool.seek(start)
                    self._add(name, self.spool.read(size))
        self.waiting.clear()
        self.tar.close()

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # time 0, no owner
        member.size = len(content)
        self.tar.addfile(member, io.BytesIO(content))


@contextlib.contextmanager
def writing_shard(store: Store, run: Run, unit: int) -> Iterator[Shard]:
    """A unit's shard, written atomically: it appears when the block ends, unless it fails."""
    path = shard_path(run.shards, unit)
    if run.shards == "webdataset":
        with store.writing(path) as file:
            tar = Tar(unit, path, file)
            yield tar
            tar.close()
        return
    with store.writing_folder(path) as put:
        folder = ImageFolder(unit, path, put)
        yield folder
        folder.close()


def read_shard(store: Store, entry: Entry) -> Iterator[tuple[Record, bytes]]:
    """The images of a shard in order. Raises ValueError or OSError if it is damaged.

    Checks the checksum of the tar file or of the metadata first.
    """
    is_tar = entry.path.endswith(".tar")
    content = store.read(entry.path if is_tar else f"{entry.path}/{METADATA}")
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ValueError(f"checksum mismatch: {METADATA if not is_tar else entry.path}")
    if not is_tar:
        for line in content.splitlines():
            record = parse_json(line)
            yield record, store.read(f"{entry.path}/{record['file_name']}")
        return
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = iter(tar)
        for image, text in zip(members, members, strict=True):
            yield parse_json(_member(tar, text)), _member(tar, image)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # all members are plain files
    return file.read()

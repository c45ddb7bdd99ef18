"""Records of scorers, stored by unit: `scores/SCORER-HASH/GALLERY/UNIT.jsonl`.

The first line says what the records are of: the scorer's version and the checksum of the unit's
images. A unit that was made again has another checksum, so its records are stale and made again.
Arrays under a record's "features" are float16 in `UNIT.npz`, which is written first. Several hosts
that score the same unit write the same bytes.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from reground_jax.basics.json_text import parse_json
from reground_jax.batch.store import Store, write
from reground_jax.evaluation.scorer import Scorer
from reground_jax.evaluation.statistics import Record
from reground_jax.evaluation.studies.galleries import Gallery

FOLDER = "scores"
GROUP = 50  # images that a scorer sees at a time, at most
FEATURES = "features"


def folder_of(scorer: Scorer) -> str:
    """The name of the folder for this scorer version's records."""
    return f"{scorer.name}-{hashlib.sha256(scorer.version.encode()).hexdigest()[:12]}"


def path_of(scorer: Scorer, gallery: str, unit: int) -> str:
    """Where the records of a unit are; gallery: its folder."""
    return f"{FOLDER}/{folder_of(scorer)}/{gallery}/{unit:09d}.jsonl"


def is_scored(store: Store, scorer: Scorer, gallery: str, unit: int, digest: str) -> bool:
    """Whether there are records of these images."""
    try:
        content = store.read(path_of(scorer, gallery, unit))
    except FileNotFoundError:
        return False
    return _is_of(content, scorer, digest)


def _is_of(content: bytes, scorer: Scorer, digest: str) -> bool:
    try:
        return parse_json(content.partition(b"\n")[0]) == _header(scorer, digest)
    except ValueError:
        return False


def score_unit(
    store: Store, gallery: Gallery, unit: int, digest: str, scorers: Sequence[Scorer]
) -> int:
    """Scores a unit by all of `scorers`, in one pass over its images; returns how many it has.

    digest: the checksum of the unit's images, one of `gallery.digests()`.
    """
    lines: list[list[bytes]] = [[] for _ in scorers]
    features: list[list[np.ndarray]] = [[] for _ in scorers]
    images = 0
    for group in gallery.groups(unit, GROUP):
        images += len(group.cases)
        for scorer, texts, arrays in zip(scorers, lines, features, strict=True):
            records = scorer.score(group.images, group.cases)
            assert len(records) == len(group.cases), f"{scorer.name} does not score every image"
            for record in records:
                if isinstance(record.get(FEATURES), np.ndarray):
                    arrays.append(record[FEATURES].astype(np.float16))
                    record = {name: v for name, v in record.items() if name != FEATURES}
                texts.append(json.dumps(record).encode())
    for scorer, texts, arrays in zip(scorers, lines, features, strict=True):
        path = path_of(scorer, gallery.folder, unit)
        if arrays:
            buffer = io.BytesIO()
            np.savez(buffer, features=np.stack(arrays))
            write(store, path.replace(".jsonl", ".npz"), buffer.getbuffer())
        header = json.dumps(_header(scorer, digest)).encode()
        write(store, path, b"".join(line + b"\n" for line in (header, *texts)))
    return images


def read_records(
    store: Store, scorer: Scorer, gallery: str, unit: int, digest: str, rows: range
) -> list[Record] | None:
    """The records of some of a unit's images, as the scorer made them; None if there are none.

    digest: the checksum of the unit's images. Raises ValueError if the file is damaged.
    """
    path = path_of(scorer, gallery, unit)
    try:
        content = store.read(path)
    except FileNotFoundError:
        return None
    if not _is_of(content, scorer, digest):
        return None
    lines = content.splitlines()[1:]
    arrays: Any = None
    if store.size(npz := path.replace(".jsonl", ".npz")) is not None:
        with np.load(io.BytesIO(store.read(npz))) as found:
            arrays = found[FEATURES]
    counts = {len(lines), len(lines) if arrays is None else len(arrays)}
    if len(counts) > 1 or rows.stop > len(lines):
        raise ValueError(
            f"{store.url}/{path} is damaged: remove it, and run the same command again"
        )
    more = [{} if arrays is None else {FEATURES: arrays[row]} for row in rows]
    return [json.loads(lines[row]) | found for row, found in zip(rows, more, strict=True)]


def _header(scorer: Scorer, digest: str) -> dict[str, Any]:
    return {"scorer": scorer.name, "version": scorer.version, "images": digest}

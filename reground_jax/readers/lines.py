"""One layout a line: JSONL, the form that streams, and every other form written as such lines.

    {"id": "a7", "prompt": "a cat", "phrases": ["a cat"], "boxes": [[0.1, 0.2, 0.5, 0.9]]}

"id" and "prompt" must be there; phrases, boxes, negative_prompt, box_format ("xyxy" or "xywh") and
seed (0..2**32-1) may be. A numeric id is taken as its text. Lines end with a line feed.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reground_jax.layout import Layout
from reground_jax.readers import Rejected
from reground_jax.readers.coco import read_coco_layouts
from reground_jax.readers.lmd import read_lmd
from reground_jax.readers.nsr1k import read_nsr1k
from reground_jax.settings import check_name

FORMS = ("jsonl", "coco", "nsr1k", "lmd")
MAX_SEED = 2**32 - 1  # as in sampling/noise.py, which imports jax


class Line(NamedTuple):
    """What a line asks for; `seed` is None where it gives none."""

    layout: Layout
    seed: int | None

    @property
    def id(self) -> str:
        assert self.layout.id is not None  # parse_line lets no other pass
        return self.layout.id


def parse_line(text: bytes) -> Line | None:
    """The layout of a line, None for a blank one. Raises ValueError that says what is wrong."""
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not a line of JSON: {error}") from error
    if isinstance(value, dict) and set(value) == {"rejected"}:
        raise ValueError(str(value["rejected"]))  # a reader of another form has given the reason
    if not isinstance(value, dict) or value.get("id") in (None, ""):
        raise ValueError(f'{str(value)[:80]} has no "id": give each layout one of its own')
    seed = value.pop("seed", None)
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    if seed is not None and not (whole and 0 <= seed <= MAX_SEED):
        raise ValueError(f"seed is {seed!r}: a seed is an integer from 0 to {MAX_SEED}")
    if isinstance(value["id"], int) and not isinstance(value["id"], bool):
        value["id"] = str(value["id"])
    return Line(Layout.from_json(value), seed)


def as_lines(entries: Iterable[Layout | Rejected]) -> Iterator[str]:
    """Lines that `parse_line` reads back, a rejected entry with its reason."""
    for entry in entries:
        value: dict[str, Any]
        if isinstance(entry, Rejected):
            value = {"rejected": f"{entry.source}: {entry.reason}"}
        else:
            value = entry.to_json()
        yield json.dumps(value) + "\n"


def detect_form(path: str) -> str:
    """The form of a file, one of FORMS, by its name and what is in it. Raises ValueError."""
    if not path.endswith(".json"):
        return "jsonl"
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON: {error}; name a file of one layout a line *.jsonl"
        ) from error
    if isinstance(content, list):
        return "nsr1k"
    return "coco" if "annotations" in content else "lmd"


def read_form(path: str, form: str, captions: str | None) -> Iterator[Layout | Rejected]:
    """The layouts of a file that is not JSONL. captions: COCO's second file. Raises ValueError."""
    check_name("form", form, FORMS)
    if (captions is not None) != (form == "coco"):
        raise ValueError(
            f"the form is {form}: COCO's instances need a captions file, the other forms have none"
        )
    if form == "coco":
        assert captions is not None
        return read_coco_layouts(path, captions)
    return {"nsr1k": read_nsr1k, "lmd": read_lmd}[form](path)

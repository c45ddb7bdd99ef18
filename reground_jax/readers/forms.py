"""The forms of files of layouts: a file's form is seen from what is in it."""

from collections.abc import Iterator
from typing import Any

from reground_jax.json_text import parse_json
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, read_json
from reground_jax.readers.coco import coco_layouts, is_coco
from reground_jax.readers.instancediffusion import (
    instancediffusion_layouts,
    is_instancediffusion,
)
from reground_jax.readers.lmd import is_lmd, lmd_layouts
from reground_jax.readers.nsr1k import is_nsr1k, nsr1k_layouts
from reground_jax.settings import check_name
from reground_jax.wording import shown

FORMS = ("jsonl", "coco", "nsr1k", "lmd", "instancediffusion")
FIRST_LINE = 1 << 20  # bytes of a file that may be its first line


def read_layouts(
    path: str, form: str | None, captions: str | None
) -> Iterator[Layout | Rejected] | None:
    """The layouts of a JSON file; None if it is JSONL, a layout per line (lines.py).

    form: one of FORMS, or None to find out. captions: COCO's second file, for it only.
    Raises ValueError if the file is of no form that is read, or not of the one that is given.
    """
    if form is not None:
        check_name("form", form, FORMS)
    elif captions is not None:
        form = "coco"
    elif not path.endswith(".json") or _is_jsonl(path):
        form = "jsonl"
    if form is not None:
        _check_captions(form, captions)
    if form == "jsonl":
        return None
    content = read_json(path, _known_as(form))
    if form is None:
        form = form_of(content, path)
        _check_captions(form, captions)
    if captions is not None:
        return coco_layouts(content, path, captions)
    readers = {
        "nsr1k": nsr1k_layouts,
        "lmd": lmd_layouts,
        "instancediffusion": instancediffusion_layouts,
    }
    return readers[form](content, path)


def form_of(content: Any, path: str) -> str:
    """The form of a JSON file's content. Raises ValueError that names those that are read."""
    tests = {
        "coco": is_coco,
        "nsr1k": is_nsr1k,
        "lmd": is_lmd,
        "instancediffusion": is_instancediffusion,
    }
    for form, test in tests.items():
        if test(content):
            return form
    if isinstance(content, dict):
        keys = ", ".join(map(shown, list(content)[:4]))
        holds = f"an object with {keys}" if keys else "an empty object"
    else:
        holds = "an empty list" if content == [] else f"a JSON {type(content).__name__}"
    raise ValueError(
        f"{path} holds {holds}, which is no form of layouts that is read: one layout per line "
        "(name that file *.jsonl), COCO's instances (with --captions), NSR-1K's and LayoutGPT's "
        "lists, LLM-grounded diffusion's cache, InstanceDiffusion's demos"
    )


def _check_captions(form: str, captions: str | None) -> None:
    if (captions is not None) != (form == "coco"):
        raise ValueError(
            f"the form is {form}: COCO's instances need a captions file, the other forms have none"
        )


def _known_as(form: str | None) -> str:
    names = {"coco": "COCO", "nsr1k": "NSR-1K", "lmd": "LMD"}
    return names.get(form or "", "layout")


def _is_jsonl(path: str) -> bool:
    """Whether the first line of a file is a whole JSON object with a prompt."""
    try:
        with open(path, "rb") as file:
            first = parse_json(file.readline(FIRST_LINE))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and "prompt" in first

"""The formats of layout files, which are recognized from a file's content."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from reground_jax.basics.fields import check_name
from reground_jax.basics.json_text import parse_json
from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, read_json
from reground_jax.readers.boxdiff import boxdiff_layouts, is_boxdiff
from reground_jax.readers.cobench import read_cobench
from reground_jax.readers.coco import coco_layouts, is_coco
from reground_jax.readers.coco_keypoints import coco_keypoints_layouts, is_coco_keypoints
from reground_jax.readers.drawbench import drawbench_layouts, is_drawbench
from reground_jax.readers.instancediffusion import instancediffusion_layouts, is_instancediffusion
from reground_jax.readers.lmd import is_lmd, lmd_layouts
from reground_jax.readers.nsr1k import is_nsr1k, nsr1k_layouts


class Form(NamedTuple):
    """A JSON format. layouts: called with (content, path), and for COCO with its captions file."""

    title: str
    fits: Callable[[Any], bool]  # whether a file's content has this format
    layouts: Callable[..., Iterator[Layout | Rejected]]


JSON_FORMS = {
    "coco_keypoints": Form("COCO key points", is_coco_keypoints, coco_keypoints_layouts),
    "coco": Form("COCO", is_coco, coco_layouts),
    "nsr1k": Form("NSR-1K", is_nsr1k, nsr1k_layouts),
    "lmd": Form("LMD", is_lmd, lmd_layouts),
    "boxdiff": Form("BoxDiff", is_boxdiff, boxdiff_layouts),
    "drawbench": Form("DrawBench", is_drawbench, drawbench_layouts),
    "instancediffusion": Form("layout", is_instancediffusion, instancediffusion_layouts),
}
FORMS = ("jsonl", "cobench", *JSON_FORMS)
FIRST_LINE = 1 << 20  # maximum bytes of a file to read as its first line


def read_layouts(
    path: str, form: str | None, captions: str | None
) -> Iterator[Layout | Rejected] | None:
    """The layouts of a JSON or CSV file; None if it is JSONL, one layout per line (lines.py).

    form: one of FORMS, or None to detect it. captions: COCO's second file, only for COCO.
    Raises ValueError if the file has no known format, or does not have the given one.
    """
    title = "layout" if captions is None else "COCO"
    if form is not None:
        check_name("form", form, FORMS)
        title = JSON_FORMS[form].title if form in JSON_FORMS else title
    elif captions is None and path.endswith(".csv"):
        form = "cobench"
    elif captions is None and (not path.endswith(".json") or _is_jsonl(path)):
        form = "jsonl"
    if form is not None:
        _check_captions(form, captions)
    if form == "jsonl":
        return None
    if form == "cobench":
        return read_cobench(path)
    content = read_json(path, title)
    if form is None and captions is not None:
        form = "coco_keypoints" if is_coco_keypoints(content) else "coco"
    elif form is None:
        form = form_of(content, path)
        _check_captions(form, captions)
    more = () if captions is None else (captions,)
    return JSON_FORMS[form].layouts(content, path, *more)


def form_of(content: Any, path: str) -> str:
    """The format of a JSON file's content. Raises ValueError that lists the known formats."""
    for name, form in JSON_FORMS.items():
        if form.fits(content):
            return name
    if isinstance(content, dict):
        keys = ", ".join(map(shown, list(content)[:4]))
        holds = f"an object with {keys}" if keys else "an empty object"
    else:
        holds = "an empty list" if content == [] else f"a JSON {type(content).__name__}"
    raise ValueError(
        f"{path} holds {holds}, which is not a known form of layouts: give one layout per line "
        "(name that file *.jsonl), COCO instances (with --captions) or key points, an NSR-1K or "
        "LayoutGPT list, an LLM-grounded diffusion cache, BoxDiff's or DrawBench's list, CoBench's "
        "CSV, or an InstanceDiffusion demo"
    )


def _check_captions(form: str, captions: str | None) -> None:
    if form != "coco_keypoints" and (captions is not None) != (form == "coco"):
        raise ValueError(
            f"the form is {form}: COCO instances need a captions file, COCO key points may have "
            "one, and other forms take none"
        )


def _is_jsonl(path: str) -> bool:
    """Whether the first line of a file is a whole JSON object with a prompt."""
    try:
        with open(path, "rb") as file:
            first = parse_json(file.readline(FIRST_LINE))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and "prompt" in first

"""The evaluation sets that people have files of: COCO's images, and NSR-1K's prompts.

The facts of these cases, beside "objects" (which have an "attribute", None):

    image           id of the COCO image
    file, size      name of its photograph, and [width, height] in pixels (COCO only)
    least_area      fraction of the image under which boxes were left out (COCO only)
    ignored         categories that are annotated in the image but are none of the objects (COCO)
    outside         categories of objects that no detector can know, as they are not in the set of
                    names (NSR-1K, whose layouts GPT-4 wrote)
    told_counts, comparison    of a counting prompt; see `readers.nsr1k.Task`
    relation        of a spatial prompt: [category, relation, category]
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reground_jax.basics.wording import plural, shown
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.data_sets.coco_names import COCO_IDS
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt, id_text, read_json
from reground_jax.readers.annotated import MIN_AREA
from reground_jax.readers.coco import Split, join, square_of
from reground_jax.readers.nsr1k import Task, category_of, read_nsr1k, read_nsr1k_tasks
from reground_jax.readers.pixels import image_size

# How many layouts a set has by default; GLIGEN was evaluated on 30,000 captions of val2014.
SIZES = {"coco2014": 30_000}

Phrases = Literal["article", "name"]  # "a dog", or "dog"


@dataclass(frozen=True)
class DataSet:
    """Cases and where they come from.

    name   names the set in folders and results; also in the hash that orders the cases
    facts  numbers for the report, as plain JSON
    """

    name: str
    cases: list[Case]
    facts: dict[str, Any]

    @property
    def categories(self) -> list[str]:
        """Every category that a detector must know for this set, in alphabetical order."""
        names: set[str] = set()
        for case in self.cases:
            facts = case.facts
            names |= {*case.counts} - {*facts.get("outside", ())}
            names |= {name for name, _ in facts.get("told_counts", ())}
            names |= {*facts.get("relation", ())[::2]}
        return sorted(names)


def coco_set(
    annotations: str | Path,
    captions: str | Path,
    *,
    name: str,
    limit: int | None = None,
    phrases: Phrases = "article",
) -> DataSet:
    """Images of COCO as cases, from instances_*.json and captions_*.json of the same split.

    The prompt is an image's first caption; the boxes are those in its center square by GLIGEN's
    rules (`readers.annotated`). Images without a box are left out. The order is that of SHA-256 of
    "NAME:ID", and `limit` (default: SIZES) takes the first ones: a smaller set is part of a larger.

    Raises ValueError if a file is not in COCO's format, if the two are of different splits, or if
    no layout is left.
    """
    split = join(
        read_json(annotations, "COCO"), annotations, read_json(captions, "COCO"), captions
    )  # fmt: skip
    _check_captions(split, annotations, captions)
    found: list[Case] = []
    rejected: list[Rejected] = list(split.strays)
    for source, image in split.sources():
        case = attempt(source, _coco_case, split, image)
        (rejected if isinstance(case, Rejected) else found).append(case)  # type: ignore[arg-type]
    boxed = [_phrased(case, phrases) for case in found if case.layout.boxes]
    cases = _first(boxed, name, SIZES.get(name) if limit is None else limit)
    facts = {
        "images": len(split.images),
        "without_boxes": len(found) - len(boxed),
        **_rejected(rejected),
        "phrases": phrases,
        "layouts": len(cases),
    }
    return _checked(DataSet(name, cases, facts), f"{annotations} has no image with a box", rejected)


def _check_captions(split: Split, annotations: str | Path, captions: str | Path) -> None:
    names = {name for name in split.same if name is not None}
    told = len(names & split.captions.keys())
    if 2 * told < len(names):
        raise ValueError(
            f"{captions} has captions of {told} of the {len(names)} images of {annotations}: are "
            "the two files of the same split?"
        )


def _coco_case(split: Split, image: Any) -> Case:
    square = square_of(split, image)
    boxed = zip(square.layout.phrases, square.layout.boxes, strict=True)
    objects = [_object(category_of(str(text)), box, True) for text, box in boxed]
    objects += [_object(category, box, False) for category, box in square.others]
    facts = {
        "image": square.layout.id,
        "file": image.get("file_name"),
        "size": [round(side) for side in image_size(image)],
        "least_area": MIN_AREA,
        "ignored": sorted(square.named - {thing["category"] for thing in objects}),
        "objects": objects,
    }
    return Case(square.layout, facts)


def nsr1k_set(
    layouts: str | Path,
    tasks: str | Path,
    *,
    name: str,
    limit: int | None = None,
    phrases: Phrases = "article",
    known: Collection[str] = COCO_IDS.keys(),
) -> DataSet:
    """NSR-1K's prompts with the layouts of one file.

    layouts: gpt4.counting.* or gpt4.spatial.*, whose cases are called "QUERY-ITER", or the file of
    the prompts, whose own boxes are then used. tasks: counting.val.json or spatial.val.json. known:
    the names of categories that detectors have; objects of others stay in the layout ("outside").
    Order and limit are those of `coco_set`.

    Raises ValueError if a file has another form, if a layout has no prompt in `tasks` or another
    prompt than there, or if no layout is left.
    """
    known_tasks = read_nsr1k_tasks(tasks)
    found: list[Case] = []
    rejected: list[Rejected] = []
    for layout in read_nsr1k(layouts):
        if isinstance(layout, Rejected):
            rejected.append(layout)
        else:
            task = _task_of(layout, known_tasks, layouts, tasks)
            found.append(_phrased(_nsr1k_case(layout, task, known), phrases))
    cases = _first(found, name, limit)
    outside = Counter(
        thing["category"]
        for case in cases
        for thing in case.facts["objects"]
        if thing["category"] in case.facts["outside"]
    )
    facts = {
        "objects": sum(len(case.facts["objects"]) for case in cases),
        "outside": outside.total(),
        "outside_names": sorted(outside),
        **_rejected(rejected),
        "phrases": phrases,
        "layouts": len(cases),
    }
    return _checked(DataSet(name, cases, facts), f"{layouts} has no valid layout", rejected)


def _task_of(
    layout: Layout, known: dict[str, Task], layouts: str | Path, tasks: str | Path
) -> Task:
    name = str(layout.id)
    task = known.get(name) or known.get(name.rpartition("-")[0])
    if task is None:
        raise ValueError(f"{tasks} has no prompt for layout {name} of {layouts}: give its file")
    if task.prompt != layout.prompt:
        raise ValueError(
            f"the prompt of layout {name} is {shown(layout.prompt)} in {layouts} and "
            f"{shown(task.prompt)} in {tasks}: give files that belong together"
        )
    return task


def _nsr1k_case(layout: Layout, task: Task, known: Collection[str]) -> Case:
    names = [category_of(str(text)) for text in layout.phrases]
    facts: dict[str, Any] = {
        "image": task.image,
        "outside": sorted(set(names) - set(known)),
        "objects": [_object(*pair, True) for pair in zip(names, layout.boxes, strict=True)],
    }
    if task.counts:
        facts |= {"told_counts": [list(p) for p in task.counts], "comparison": task.comparison}
    if task.relation is not None:
        facts["relation"] = list(task.relation)
    return Case(layout, facts)


def _object(category: str, box: Sequence[float], boxed: bool) -> dict[str, Any]:
    return {"category": category, "attribute": None, "box": tuple(box), "boxed": boxed}


def _phrased(case: Case, phrases: Phrases) -> Case:
    if phrases == "article":
        return case
    names = [category_of(str(text)) for text in case.layout.phrases]
    return Case(dataclasses.replace(case.layout, phrases=names), case.facts)


def _first(cases: Iterable[Case], name: str, limit: int | None) -> list[Case]:
    """The first `limit` cases, or all, in the order of a hash that has the set's name in it."""

    def key(case: Case) -> str:
        return hashlib.sha256(f"{name}:{id_text(case.layout.id)}".encode()).hexdigest()

    return sorted(cases, key=key)[:limit]


def _rejected(rejected: Sequence[Rejected]) -> dict[str, Any]:
    examples = [f"{entry.source}: {entry.reason}" for entry in rejected[:3]]
    return {"rejected": len(rejected), "rejected_examples": examples}


def _checked(made: DataSet, problem: str, rejected: Sequence[Rejected]) -> DataSet:
    if made.cases:
        return made
    reason = f" ({plural(len(rejected), 'layout')} rejected)" if rejected else ""
    first = f"; the first: {rejected[0].source}: {rejected[0].reason}" if rejected else ""
    raise ValueError(f"{problem}{reason}{first}")

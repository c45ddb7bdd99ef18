"""COCO, COCO-Drop and NSR-1K as one data set of `reground-jax evaluate`."""

import re
from collections.abc import Sequence
from pathlib import Path

from reground_jax.evaluation.cases import Case, Half, with_half_the_boxes
from reground_jax.evaluation.data import CaseSet, Data
from reground_jax.evaluation.data_sets.files import DataSet, Phrases, coco_set, nsr1k_set
from reground_jax.evaluation.data_sets.photographs import find_photographs, known_photographs
from reground_jax.evaluation.scorer import Axis, TradeOff

CLIP = Axis("clip", "CLIP score", "in CLIP score", level="CLIP score")
TRADE_OFFS = tuple(
    TradeOff(x=Axis(metric, f"YOLO score ({title}), %", f"in {title}", level=title), y=CLIP)
    for metric, title in (("ap50", "AP50"), ("ap", "AP"))
)
DROPPED: dict[Half, tuple[str, str]] = {  # name and title
    "floor": ("dropped", "COCO-Drop: the boxes of half of the categories taken away"),
    "ceil": ("dropped-ceil", "COCO-Drop: the boxes of half of the categories, or one more"),
    "each": ("dropped-each", "COCO-Drop: the boxes of each category with probability 1/2"),
}
LEAST_TOLD = 20  # photographs from which a threshold for counting is chosen


def coco_data(
    annotations: str | Path,
    captions: str | Path,
    *,
    count: int | None = None,
    drop: Half | None = None,
    nsr1k: Sequence[tuple[str, str]] = (),
    phrases: Phrases = "article",
    photographs: str | Path | None = None,
) -> Data:
    """Images of COCO with a box, in the order of a hash, and what is measured beside them.

    annotations, captions: instances_*.json and captions_*.json of the same split. count: the first
    so many layouts of each set, all by default (of val2014, 30,000). drop: also COCO-Drop, of these
    layouts; see `with_half_the_boxes`. nsr1k: (layouts, prompts), files of NSR-1K. phrases: "a dog"
    or "dog", of all sets. photographs: the folder of COCO's images. It must have those of the
    layouts, and may have those that NSR-1K's counting prompts were written for, on which the
    detectors' threshold is then chosen.

    Raises ValueError for files that do not fit together, and photographs that are missing.
    """
    year = re.search(r"20(14|17)", Path(annotations).name)
    name = f"coco{year[0]}" if year else "coco"
    main = coco_set(annotations, captions, name=name, phrases=phrases)
    chosen = main.cases[:count]
    title = f"COCO-{year[0]}" if year else "COCO"
    sets = [CaseSet(name, title, main.cases, len(chosen), "all", name)]
    if drop is not None:
        dropped, every = with_half_the_boxes(chosen, drop), with_half_the_boxes(main.cases, drop)
        if not dropped:
            raise ValueError("--drop needs layouts with two categories or more: there is none")
        sets.append(CaseSet(*DROPPED[drop], every, len(dropped), paper="coco-drop"))
    pictured = sets[:] if photographs is not None else []
    others = [_nsr1k(*files, phrases) for files in nsr1k]
    for other in others:
        kind = other.name.removeprefix("nsr1k-")
        used = len(other.cases[:count])
        sets.append(CaseSet(other.name, f"NSR-1K, {kind}", other.cases, used, paper=other.name))
    return Data(
        sets=tuple(sets),
        facts={one.name: one.facts for one in (main, *others)},
        photographs={one.name: find_photographs(one.used, str(photographs)) for one in pictured},
        told=_told(others, photographs) if photographs is not None else (),
        trade_offs=TRADE_OFFS,
        categories=tuple(sorted({name for one in (main, *others) for name in one.categories})),
    )


def _nsr1k(layouts: str, tasks: str, phrases: Phrases) -> DataSet:
    found = nsr1k_set(layouts, tasks, name="nsr1k")
    kind = "spatial" if "relation" in found.cases[0].facts else "counting"
    return nsr1k_set(layouts, tasks, name=f"nsr1k-{kind}", phrases=phrases)


def _told(sets: Sequence[DataSet], folder: str | Path) -> tuple[tuple[Case, Path], ...]:
    """Photographs that counting prompts were written for, as far as they are there: one for each
    prompt, however many layouts it has. None if they are too few to choose anything on."""
    cases = {
        (case.facts["image"], case.layout.prompt): case
        for one in sets
        for case in reversed(one.cases)
        if case.facts.get("told_counts")
    }
    paths = known_photographs(cases.values(), folder)
    found = [(case, path) for case, path in zip(cases.values(), paths, strict=True) if path]
    return tuple(found) if len(found) >= LEAST_TOLD else ()

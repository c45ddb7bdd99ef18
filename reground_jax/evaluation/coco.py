"""COCO, COCO-Drop and NSR-1K as one data set of `reground-jax evaluate`."""

import re
from collections.abc import Sequence
from pathlib import Path

from reground_jax.evaluation.cases import with_half_the_boxes
from reground_jax.evaluation.data import CaseSet, Data
from reground_jax.evaluation.data_sets import DataSet, coco_set, nsr1k_set
from reground_jax.evaluation.photographs import find_photographs
from reground_jax.evaluation.scorer import Axis, TradeOff

CLIP = Axis("clip", "CLIP score", "in CLIP score", level="CLIP score")
TRADE_OFFS = tuple(
    TradeOff(x=Axis(metric, f"YOLO score ({title}), %", f"in {title}", level=title), y=CLIP)
    for metric, title in (("ap50", "AP50"), ("ap", "AP"))
)
DROPPED = "COCO-Drop: the boxes of half of the categories taken away"


def coco_data(
    annotations: str | Path,
    captions: str | Path,
    *,
    count: int | None = None,
    drop: bool = False,
    nsr1k: Sequence[tuple[str, str]] = (),
    photographs: str | Path | None = None,
) -> Data:
    """Images of COCO with a box, in the order of a hash, and what is measured beside them.

    annotations, captions: instances_*.json and captions_*.json of the same split. count: the first
    so many layouts of each set, all by default (of val2014, 30,000). drop: also COCO-Drop, of these
    layouts. nsr1k: (layouts, prompts), files of NSR-1K. photographs: the folder of COCO's images.

    Raises ValueError for files that do not fit together, and photographs that are missing.
    """
    year = re.search(r"20(14|17)", Path(annotations).name)
    name = f"coco{year[0]}" if year else "coco"
    main = coco_set(annotations, captions, name=name)
    chosen = main.cases[:count]
    title = f"COCO-{year[0]}" if year else "COCO"
    sets = [CaseSet(name, title, main.cases, len(chosen), "all", name)]
    if drop:
        dropped, every = with_half_the_boxes(chosen), with_half_the_boxes(main.cases)
        if not dropped:
            raise ValueError("--drop needs layouts with two categories or more: there is none")
        sets.append(CaseSet("dropped", DROPPED, every, len(dropped), paper="coco-drop"))
    others = [_nsr1k(*files) for files in nsr1k]
    for other in others:
        kind = other.name.removeprefix("nsr1k-")
        used = len(other.cases[:count])
        sets.append(CaseSet(other.name, f"NSR-1K, {kind}", other.cases, used, paper=other.name))
    pictured = sets[: 1 + drop] if photographs is not None else []
    return Data(
        sets=tuple(sets),
        facts={one.name: one.facts for one in (main, *others)},
        photographs={one.name: find_photographs(one.used, str(photographs)) for one in pictured},
        trade_offs=TRADE_OFFS,
        categories=tuple(sorted({name for one in (main, *others) for name in one.categories})),
    )


def _nsr1k(layouts: str, tasks: str) -> DataSet:
    found = nsr1k_set(layouts, tasks, name="nsr1k")
    kind = "spatial" if "relation" in found.cases[0].facts else "counting"
    return nsr1k_set(layouts, tasks, name=f"nsr1k-{kind}")

"""The built-in world as a data set of `reground-jax evaluate`."""

from collections.abc import Sequence
from pathlib import Path

from reground_jax.emoji.cases import heldout_cases, nsr1k_cases, with_rich_phrases
from reground_jax.emoji.scorer import TRADE_OFF
from reground_jax.evaluation.cases import Case, with_half_the_boxes
from reground_jax.evaluation.data import CaseSet, Data, Reach

TITLES = {
    "heldout": "Held-out layouts",
    "dropped": "COCO-Drop: the boxes of half of the categories taken away",
    "nsr1k": "NSR-1K: layouts by GPT-4",
}


def emoji_data(
    count: int,
    *,
    nsr1k: str | Path | None = None,
    categories: Sequence[str] = (),
    rich_phrases: bool = False,
) -> Data:
    """The first `count` held-out layouts, and those of them that remain on COCO-Drop.

    nsr1k: a file of GPT-4's layouts, of which those are taken that have only `categories`.
    rich_phrases: "a blue cat" instead of "a cat". Raises ValueError for a file without such
    layouts, or if there are fewer than `count`.
    """
    chosen, every = heldout_cases(count), heldout_cases()
    cases = {"heldout": every, "dropped": with_half_the_boxes(every)}
    counts = {"heldout": count, "dropped": len(with_half_the_boxes(chosen))}
    reach: dict[str, Reach] = {"heldout": "all", "dropped": "grounded", "nsr1k": "largest"}
    if nsr1k is not None:
        cases["nsr1k"] = nsr1k_cases(nsr1k, categories)
        counts["nsr1k"] = len(cases["nsr1k"])

    def worded(found: list[Case]) -> list[Case]:
        return [with_rich_phrases(case) for case in found] if rich_phrases else found

    return Data(
        sets=tuple(
            CaseSet(name, TITLES[name], worded(found), counts[name], reach[name])
            for name, found in cases.items()
            if counts[name]
        ),
        own_seeds=True,
        identity={"rich_phrases": rich_phrases},
        trade_offs=(TRADE_OFF,),
    )

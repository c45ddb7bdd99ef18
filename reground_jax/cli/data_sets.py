"""What `evaluate` can measure on, and with: one registry of data sets, one of scorers.

A data set is a function of the parsed options that returns a `Data`; name it in DATA_SETS, with the
options that are its own, which are refused with any other. A scorer is a function of what stands
behind "=" in --scorers and of the data set, which returns a `Scorer`; name it in SCORERS. Both
raise ValueError for what is missing, in one sentence that says what to do.
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reground_jax.basics.fields import check_name

if TYPE_CHECKING:
    from reground_jax.emoji.probes import Probes
    from reground_jax.evaluation.data import Data
    from reground_jax.evaluation.scorer import Scorer


@dataclass(frozen=True)
class DataSet:
    """A data set of `evaluate --data`.

    open     (options) -> the data set
    options  those that only it has, by their names in the namespace
    scorers  what it is scored with by default, as --scorers has it
    """

    open: Callable[[argparse.Namespace], "Data"]
    options: tuple[str, ...]
    scorers: tuple[str, ...]


# ---- data sets


def _emoji(arguments: argparse.Namespace) -> "Data":
    from reground_jax.emoji.data import emoji_data

    count = arguments.layouts if arguments.layouts is not None else EMOJI_LAYOUTS
    if not isinstance(count, int) or count < LEAST:
        raise ValueError(f"--layouts is {count}: give a whole number, at least {LEAST}")
    files = arguments.nsr1k
    if len(files) > 1:
        raise ValueError(
            f"--nsr1k is given {len(files)} times: with the built-in world, give one file"
        )
    return emoji_data(
        count,
        nsr1k=files[0] if files else None,
        categories=_probes().names.categories[:-1],
        rich_phrases=arguments.rich_phrases,
    )


def _coco(arguments: argparse.Namespace) -> "Data":
    from reground_jax.evaluation.data_sets.coco import coco_data

    for name in ("annotations", "captions"):
        if getattr(arguments, name) is None:
            raise ValueError(f"--data coco needs --{name}, COCO's {FILES[name]}")
    phrases = arguments.phrases or PHRASES[0]
    check_name("phrases", phrases, PHRASES)
    if arguments.drop is not None:
        check_name("drop", arguments.drop, DROPS)
    count = arguments.layouts
    if count is not None and (not isinstance(count, int) or count < 1):
        raise ValueError(f"--layouts is {count}: give a whole number, at least 1")
    pairs = [tuple(text.split("=")) for text in arguments.nsr1k]
    if wrong := [pair for pair in pairs if len(pair) != 2 or "" in pair]:
        raise ValueError(
            f"--nsr1k is {'='.join(wrong[0])}: give LAYOUTS=PROMPTS, such as "
            "gpt4.counting.all.json=counting.val.json"
        )
    return coco_data(
        arguments.annotations,
        arguments.captions,
        count=count,
        drop=arguments.drop,
        phrases=phrases,  # type: ignore[arg-type]
        nsr1k=pairs,  # type: ignore[arg-type]
        photographs=arguments.photographs,
    )


EMOJI_LAYOUTS, LEAST = 250, 8
DROPS, PHRASES = ("floor", "ceil", "each"), ("article", "name")  # the first ones by default
FILES = {"annotations": "instances_*.json", "captions": "captions_*.json"}
DATA_SETS = {
    "emoji": DataSet(_emoji, ("rich_phrases",), ("probes",)),
    "coco": DataSet(
        _coco,
        ("annotations", "captions", "photographs", "drop", "phrases"),
        ("clip", "detector"),
    ),
}


def open_data(arguments: argparse.Namespace) -> "Data":
    """The data set of the options. Raises ValueError, also for options of another one."""
    check_name("data", arguments.data, tuple(DATA_SETS))
    own = DATA_SETS[arguments.data].options
    for name, other in DATA_SETS.items():
        for option in other.options:
            if option not in own and getattr(arguments, option, None):
                raise ValueError(
                    f"--{option.replace('_', '-')} is for --data {name}, not {arguments.data}: "
                    "leave it out"
                )
    return DATA_SETS[arguments.data].open(arguments)


# ---- scorers


@functools.cache
def _probes() -> "Probes":
    from reground_jax.emoji.probes import Probes

    return Probes.load()


def _probe_scorer(source: str, data: "Data") -> "Scorer":
    from reground_jax.emoji.scorer import emoji_scorer

    if source:
        raise ValueError(f"scorer probes={source}: the probes come with the package, write probes")
    return emoji_scorer(_probes())


def _clip_scorer(source: str, data: "Data") -> "Scorer":
    from reground_jax.evaluation.scorers.clip import CLIP, clip_scorer

    return clip_scorer(source or CLIP)


def _pick_scorer(source: str, data: "Data") -> "Scorer":
    from reground_jax.evaluation.scorers.clip import PICK, pick_scorer

    return pick_scorer(source or PICK)


def _inception_scorer(source: str, data: "Data") -> "Scorer":
    from reground_jax.evaluation.scorers.inception import inception_scorer

    if not source:
        from reground_jax.convert.scoring import INCEPTION_FILE, INCEPTION_URL

        raise ValueError(
            f"scorer fid needs the network: get {INCEPTION_URL} and write fid={INCEPTION_FILE}"
        )
    if not data.photographs:
        raise ValueError("scorer fid compares with photographs: give --photographs")
    return inception_scorer(source)


def _detector_scorer(source: str, data: "Data") -> "Scorer":
    if source == "probe":
        from reground_jax.emoji.detector import probe_detector

        return probe_detector(_probes())
    from reground_jax.evaluation.scorers.detector import detector_scorer

    return detector_scorer(source or DETECTOR, data.categories)


def _results_scorer(source: str, data: "Data") -> "Scorer":
    from reground_jax.evaluation.scorers.results import results_scorer

    return results_scorer(source, data.categories)


DETECTOR = "PekingU/rtdetr_r50vd"
SCORERS: dict[str, Callable[[str, "Data"], "Scorer"]] = {
    "probes": _probe_scorer,
    "clip": _clip_scorer,
    "pick": _pick_scorer,
    "fid": _inception_scorer,
    "detector": _detector_scorer,
    "detections": _results_scorer,
}


def open_scorers(wanted: Sequence[str], data: "Data") -> tuple[list["Scorer"], list[str]]:
    """The scorers named as "NAME" or "NAME=SOURCE", and a sentence for each that cannot be opened.

    A second one of a name has its number: its metrics are called "clip2", "detector2.ap50".
    Raises ValueError for a name that is no scorer's.
    """
    found: list[Scorer] = []
    missing: list[str] = []
    for word in wanted:
        name, _, source = word.partition("=")
        check_name("scorer", name, tuple(SCORERS))
        try:
            found.append(renamed(SCORERS[name](source, data), {other.name for other in found}))
        except (ValueError, OSError) as error:
            missing.append(str(error))
    return found, missing


def renamed(scorer: "Scorer", taken: Collection[str]) -> "Scorer":
    """The scorer, with a number behind its name and its metrics' if the name is taken."""
    numbers = itertools.count(2)
    name = scorer.name
    while name in taken:
        name = f"{scorer.name}{next(numbers)}"
    if name == scorer.name:
        return scorer
    metrics = [
        dataclasses.replace(
            metric,
            name=metric.name.replace(scorer.name, name, 1)
            if metric.name.startswith(scorer.name)
            else f"{name}.{metric.name}",
        )
        for metric in scorer.metrics
    ]
    return dataclasses.replace(scorer, name=name, metrics=tuple(metrics))

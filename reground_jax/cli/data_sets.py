"""What `evaluate` can measure on, and with: one registry of data sets, one of scorers.

A data set is a function of the parsed options that returns a `Data`; name it in DATA_SETS, with the
options that are its own, which are refused with any other. A scorer is a function of what stands
behind "=" in --scorers and of the data set, which returns a `Scorer`; name it in SCORERS. Both
raise ValueError for what is missing, in one sentence that says what to do.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
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


EMOJI_LAYOUTS, LEAST = 250, 8
DATA_SETS = {
    "emoji": DataSet(_emoji, ("rich_phrases",), ("probes",)),
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
        raise ValueError(
            f"probes={source}: the probes come with the package, write --scorers probes"
        )
    return emoji_scorer(_probes())


SCORERS: dict[str, Callable[[str, "Data"], "Scorer"]] = {
    "probes": _probe_scorer,
}


def open_scorers(wanted: Sequence[str], data: "Data") -> tuple[list["Scorer"], list[str]]:
    """The scorers named as "NAME" or "NAME=SOURCE", and a sentence for each that cannot be opened.

    Raises ValueError for a name that is no scorer's.
    """
    found, missing = [], []
    for word in wanted:
        name, _, source = word.partition("=")
        check_name("scorer", name, tuple(SCORERS))
        try:
            found.append(SCORERS[name](source, data))
        except (ValueError, OSError) as error:
            missing.append(str(error))
    return found, missing

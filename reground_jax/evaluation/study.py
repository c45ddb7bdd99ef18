"""ReGround's main experiment, resumable: how gamma and the wiring affect boxes and text.

A run's folder holds study.json (what the images depend on), the images themselves, stacked
vertically in parts/CONDITION/FIRST-LAST.png, and the records of each scorer in
scores/SCORER-VERSION/CONDITION/FIRST-LAST.json. Nothing that exists is made again: an interrupted
run resumes, a larger run reuses what a smaller one made, and a new scorer, or a new version of one,
scores the existing images. `report.py` turns the records into tables.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from reground_jax.basics.atomic import write_json
from reground_jax.basics.identity import differences, listed
from reground_jax.basics.json_text import parse_json
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.conditions import Condition, Series
from reground_jax.evaluation.pictures import Generator, generate, read_sheet, save_sheet
from reground_jax.evaluation.scorer import Scorer, TradeOff, check_scorers
from reground_jax.evaluation.statistics import Record
from reground_jax.settings import Settings

CHUNK = 50  # images per file

Progress = Callable[[int, int], None]  # (images done, total)
Records = Mapping[Condition, Mapping[str, Sequence[Record]]]  # by condition, by scorer's name


@dataclass(frozen=True)
class Chunk:
    """Cases whose images share a file, in each condition."""

    start: int  # index of the first one among all cases
    cases: Sequence[Case]

    @property
    def name(self) -> str:
        return f"{self.start:05}-{self.start + len(self.cases) - 1:05}"


@dataclass(frozen=True)
class Study:
    """What to measure, and the folder `out` of the run.

    models     name -> function that loads its generator; called only if images are missing
    cases      name -> cases, the main set first; "dropped" shares its ids, and so its seeds
    titles     name of a set of cases -> its heading in the report
    settings   steps, solver and guidance of every image; not its wiring, coupling and gamma
    identity   what else the images depend on, such as model checksums
    scorers    what measures the images; not part of the identity
    trade_off  the two metrics to weigh against each other

    Raises ValueError if two scorers or metrics have the same name, or if the trade-off uses a
    metric that no scorer has.
    """

    out: Path
    models: Mapping[str, Callable[[], Generator]]
    cases: Mapping[str, Sequence[Case]]
    series: Sequence[Series]
    settings: Settings
    identity: Mapping[str, Any]
    scorers: Sequence[Scorer]
    trade_off: TradeOff
    titles: Mapping[str, str] = field(default_factory=dict)
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_scorers(self.scorers, self.trade_off)

    def run(self, progress: Progress = lambda done, total: None) -> Records:
        """The records of every condition by every scorer, in the order of its cases.

        Raises ValueError if `out` holds the run of another study.
        """
        self.claim()
        total = sum(len(s.gammas) * len(self.cases[s.cases]) for s in self.series)
        done = 0
        progress(done, total)
        records: dict[Condition, dict[str, list[Record]]] = {
            condition: {scorer.name: [] for scorer in self.scorers}
            for series in self.series
            for condition in series.conditions()
        }
        generators = {name: functools.cache(load) for name, load in self.models.items()}
        for series in self.series:
            for chunk in self._chunks(series.cases):
                report = functools.partial(_report, progress, done, total)
                self._make_missing(series, chunk, generators[series.model], report)
                for condition in series.conditions():
                    for name, found in self._scored(condition, chunk).items():
                        records[condition][name] += found
                    done += len(chunk.cases)
                progress(done, total)
        return records

    def claim(self) -> None:
        """Writes study.json, or raises ValueError if the folder belongs to another study."""
        path = self.out / "study.json"
        mine = {"settings": self.settings.to_json(), **self.identity}
        if not path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(path, mine)
            return
        try:
            theirs = parse_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}; choose another --out") from error
        if not isinstance(theirs, dict):
            raise ValueError(f"{path} is not the record of a study: choose another --out")
        if isinstance(theirs.get("settings"), dict):  # settings that are newer have their defaults
            theirs["settings"] = Settings().to_json() | theirs["settings"]
        # Older folders list their only scorer's version here and keep its records next to the
        # images. The images are scored again, which takes far less time than making them did.
        for scorer in self.scorers:
            theirs.pop(scorer.name, None)
        if found := differences(theirs, mine):
            raise ValueError(
                f"{self.out} holds another study: {listed(found)}. Repeat the old values to resume "
                "it, or choose another --out"
            )

    def images(self, condition: Condition, count: int) -> UInt8[np.ndarray, "B S S 3"]:
        """The first `count` images of a condition that has been run."""
        parts: list[np.ndarray] = []
        for chunk in self._chunks(condition.cases):
            parts.extend(read_sheet(self._sheet(condition, chunk), len(chunk.cases)))
            if len(parts) >= count:
                break
        return np.stack(parts[:count])

    def _chunks(self, name: str) -> Iterator[Chunk]:
        cases = self.cases[name]
        for start in range(0, len(cases), CHUNK):
            yield Chunk(start, cases[start : start + CHUNK])

    def _sheet(self, condition: Condition, chunk: Chunk) -> Path:
        return self.out / "parts" / condition.folder / f"{chunk.name}.png"

    def _make_missing(
        self,
        series: Series,
        chunk: Chunk,
        generator: Callable[[], Generator],
        report: Callable[[float], None],
    ) -> None:
        """Makes the sheets of one chunk for the gammas that lack them."""
        sheets = {c: self._sheet(c, chunk) for c in series.conditions()}
        missing = [condition for condition, sheet in sheets.items() if not sheet.exists()]
        if missing:
            made = generate(
                generator(), chunk.cases, self.settings, method=series.method,
                gammas=[c.gamma for c in missing], batch_size=self.batch_size, report=report,
            )  # fmt: skip
            for condition, images in zip(missing, made, strict=True):
                save_sheet(sheets[condition], images)

    def _scored(self, condition: Condition, chunk: Chunk) -> dict[str, list[Record]]:
        """The judged records of one sheet by scorer; scores the sheet if they do not exist yet."""
        sheet, count = self._sheet(condition, chunk), len(chunk.cases)
        images = functools.cache(lambda: read_sheet(sheet, count))
        records = {}
        for scorer in self.scorers:
            path = self.out / "scores" / folder_of(scorer) / condition.folder / f"{chunk.name}.json"
            if not path.exists():
                found = scorer.score(images(), chunk.cases)
                assert len(found) == count, f"{scorer.name} does not score every image"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, found)
            found = json.loads(path.read_text())
            pairs = zip(found, chunk.cases, strict=True)
            records[scorer.name] = [scorer.judge(record, case) for record, case in pairs]
        return records


def _report(progress: Progress, done: int, total: int, more: float) -> None:
    progress(done + int(more), total)


def folder_of(scorer: Scorer) -> str:
    """The name of the folder for this scorer version's records."""
    return f"{scorer.name}-{hashlib.sha256(scorer.version.encode()).hexdigest()[:12]}"

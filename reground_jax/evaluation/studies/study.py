"""ReGround's main experiment, resumable: how gamma and the wiring affect boxes and text.

A study's folder, or URL, holds

    study.json                              what the images depend on
    cases/SET.jsonl                         the layouts of each set of cases, all that there are
    images/SERIES/seed-0/GAMMAS/            an output of `batch`: runs of one model, set and method
    scores/SCORER-HASH/SERIES/seed-0/GAMMAS/UNIT.jsonl    records (scores.py)

Nothing that exists is made again: an interrupted study resumes, a larger one goes on with what a
smaller one made, and a new scorer, or a new version of one, scores the existing images. Several
hosts share each step as those of `batch` do. `report.py` turns the records into tables.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reground_jax.batch.hosts import Share
from reground_jax.batch.index import Source
from reground_jax.batch.lock import holder
from reground_jax.batch.run import Run, check
from reground_jax.batch.store import open_store, write
from reground_jax.batch.unit import Sampler
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.data import Data
from reground_jax.evaluation.scorer import Distance, Scorer, TradeOff, check_scorers
from reground_jax.evaluation.statistics import Record
from reground_jax.evaluation.studies.claim import cases_path, claim
from reground_jax.evaluation.studies.conditions import Condition, Series
from reground_jax.evaluation.studies.galleries import Gallery, Group, Photographs
from reground_jax.evaluation.studies.making import job_of, make_units
from reground_jax.evaluation.studies.parts import Part, gammas_of, parts_of
from reground_jax.evaluation.studies.scores import GROUP, is_scored, read_records, score_unit
from reground_jax.settings import Settings

ALONE = Share(0, 1, "alone")

Progress = Callable[[int, int], None]  # (images done, total)


class Made(NamedTuple):
    """How many images of a run were made in how many seconds."""

    part: Part
    images: int
    seconds: float


@dataclass(frozen=True)
class Model:
    """A model to measure.

    name, checksum  of the checkpoint
    sampler         makes a run's images; called only if some are missing
    side            of its images, pixels
    kind            what `batch.run.Run` records of its kind
    """

    name: str
    checksum: str
    sampler: Callable[[Run], Sampler]
    side: int
    kind: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What to measure, and the folder or URL `out` of the study.

    settings    steps, solver and guidance of every image; not its wiring, coupling and gamma
    identity    what else the images depend on, such as scaled gates
    scorers     what measures the images; not part of the identity
    trade_off   the two metrics to weigh against each other, if there are two
    batch_size  images of one gamma at a time on each device; unit_lines: layouts per shard
    seeds       run seeds: so many images of each layout in each condition

    Raises ValueError if two scorers or metrics have the same name, or if the trade-off uses a
    metric that no scorer has.
    """

    out: str
    models: Mapping[str, Model]
    data: Data
    series: Sequence[Series]
    settings: Settings
    identity: Mapping[str, Any]
    scorers: Sequence[Scorer]
    trade_off: TradeOff | None
    batch_size: int
    unit_lines: int
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        check_scorers(self.scorers, self.trade_off)
        if self.data.own_seeds and len(self.seeds) > 1:
            raise ValueError(
                f"seeds are {list(self.seeds)}, but the layouts of this data set have their own: "
                "leave out --seeds"
            )

    # ---- what there is to make

    @functools.cached_property
    def parts(self) -> list[Part]:
        """The batch runs of the study, in order."""
        store = open_store(self.out)
        found = []
        for series in self.series:
            cases = self.data.of(series.cases)
            for seed in self.seeds:
                folder = f"images/{series.folder}/seed-{seed}"
                for gammas in parts_of(series.gammas, gammas_of(store, folder)):
                    run = self._run(series, gammas, seed)
                    asked = tuple(gamma for gamma in gammas if gamma in series.gammas)
                    part = Part(series, seed, asked, folder, run, cases, self.out)
                    check(part.store(), run)
                    found.append(part)
        return found

    def _run(self, series: Series, gammas: tuple[float, ...], seed: int) -> Run:
        model = self.models[series.model]
        return Run(
            settings=self.settings, wirings=(series.method,), gammas=gammas, seeds=(seed,),
            unit_lines=self.unit_lines, batch_size=self.batch_size, shards="webdataset",
            image="png", quality=95, input_sha256=self._sources[series.cases].sha256,
            checkpoint=model.name, checkpoint_sha256=model.checksum, **model.kind,
        )  # fmt: skip

    @functools.cached_property
    def _sources(self) -> dict[str, Source]:
        url = open_store(self.out).url
        return {
            name: Source(f"{url}/{cases_path(name)}", hashlib.sha256(lines).hexdigest())
            for name, lines in self.data.inputs.items()
        }

    def claim(self, share: Share = ALONE) -> None:
        """Writes study.json and the cases, or raises ValueError if another study is there."""
        facts = {"settings": self.settings.to_json(), **self.identity, **self.data.identity}
        store = open_store(self.out, owner=f"host-{share.index:04d}")
        claim(store, facts, self.data.inputs)

    # ---- the three steps

    def generate(
        self,
        share: Share = ALONE,
        progress: Progress = lambda done, total: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> list[Made]:
        """Makes the missing images of this process's share; returns what it made of each run.

        Raises ValueError if `out` holds another study or images cannot be made, and Interrupted.
        """
        done, made = 0, []
        total = sum(part.images(part.units(share)) for part in self.parts)
        with self.stage("host", share):
            self.claim(share)
            for part in self.parts:
                progress(done, total)
                with job_of(part, self._sources[part.series.cases], share) as job:
                    units, _ = job.remaining()
                    done += part.images(part.units(share)) - job.images(units)
                    if units:
                        sampler = self.models[part.series.model].sampler(part.run)
                        report = functools.partial(_report, progress, done, total)
                        meter = make_units(job, units, sampler, report, say)
                        made.append(Made(part, meter.images, meter.seconds))
                        done += job.images(units)
        progress(done, total)
        return made

    def score(
        self, share: Share = ALONE, progress: Progress = lambda done, total: None
    ) -> tuple[int, int]:
        """Scores what has images and no scores, of this process's share.

        Returns how many images of the share have scores now, and how many it should have.
        """
        store = open_store(self.out, owner=f"score-{share.index:04d}")
        galleries = self._galleries(share)
        total = sum(images for _, units in galleries for images in units.values())
        done = 0
        with self.stage("score", share):
            for gallery, units in galleries:
                digests = gallery.digests()
                for unit, images in units.items():
                    progress(done, total)
                    if unit not in digests:
                        continue
                    missing = [
                        scorer
                        for scorer in self._scorers_of(gallery)
                        if not is_scored(store, scorer, gallery.folder, unit, digests[unit])
                    ]
                    if missing:
                        score_unit(store, gallery, unit, digests[unit], missing)
                    done += images
        progress(done, total)
        return done, total

    @contextlib.contextmanager
    def stage(self, name: str, share: Share) -> Iterator[None]:
        """Holds the lock of one step of a share, which also protects its partial files.

        name: "host" to generate, as `batch` calls the owner of a run's files; "score", "report".
        """
        store = open_store(self.out, owner=f"{name}-{share.index:04d}")
        with store.lock(holder()):
            store.remove_parts()
            yield

    def _galleries(self, share: Share) -> list[tuple[Gallery, dict[int, int]]]:
        """Each gallery, and how many images each of the share's units has."""
        found: list[tuple[Gallery, dict[int, int]]] = []
        for part in self.parts:
            units = {unit: part.images([unit]) for unit in part.units(share)}
            found.append((part.gallery(), units))
        for gallery in self.all_photographs():
            units = gallery.units()
            found.append((gallery, {unit: units[unit] for unit in share.of(units)}))
        return found

    def _scorers_of(self, gallery: Gallery) -> list[Scorer]:
        told = any(gallery is one for one in self._told)
        return [scorer for scorer in self.scorers if not told or scorer.tuned is not None]

    @functools.cached_property
    def photographs(self) -> dict[str, Photographs]:
        """By set of cases, for those that have photographs."""
        return {
            name: self._photographs(name, self.data.of(name).used, paths)
            for name, paths in self.data.photographs.items()
        }

    def all_photographs(self) -> list[Photographs]:
        """Those, and those on which scorers choose their rules, if any does."""
        told = self._told if any(s.tuned is not None for s in self.scorers) else ()
        return [*self.photographs.values(), *told]

    def _photographs(self, name: str, cases: Sequence[Case], paths: Sequence[Path]) -> Photographs:
        side = next(iter(self.models.values())).side
        return Photographs(f"photographs-{name}", cases, paths, side, self.unit_lines)

    @functools.cached_property
    def _told(self) -> tuple[Photographs, ...]:
        """The photographs of `Data.told`, if there are any."""
        if not self.data.told:
            return ()
        cases, paths = zip(*self.data.told, strict=True)
        return (self._photographs("told", cases, paths),)

    # ---- what was found

    def tuned(self) -> "Study":
        """The study with the rules that its scorers choose on photographs, of which it has the
        records. Raises ValueError if some are missing."""
        scorers = list(self.scorers)
        for gallery in self._told:
            spans = _spans(gallery)
            scorers = [
                s if s.tuned is None
                else s.tuned(s, list(self._read(s, gallery, spans)), gallery.cases)
                for s in scorers
            ]  # fmt: skip
        return dataclasses.replace(self, scorers=scorers)

    def conditions(self) -> list[Condition]:
        return [condition for series in self.series for condition in series.conditions()]

    def records(
        self, condition: Condition, scorers: Sequence[Scorer] | None = None
    ) -> dict[str, list[Record]]:
        """The judged records of a condition by scorer: by seed, then in the order of its cases.

        scorers: all by default. Raises ValueError if some are missing.
        """
        cases = [*self.data.of(condition.cases).used] * len(self.seeds)
        stored = self.stored(condition, scorers)
        return {
            scorer.name: [
                scorer.judge(*pair) for pair in zip(stored[scorer.name], cases, strict=True)
            ]
            for scorer in self.scorers
            if scorer.name in stored
        }

    def stored(
        self, condition: Condition, scorers: Sequence[Scorer] | None = None
    ) -> dict[str, list[Record]]:
        """The same as the scorers made them."""
        chosen = self.scorers if scorers is None else scorers
        found: dict[str, list[Record]] = {scorer.name: [] for scorer in chosen}
        for part in self.parts:
            if part.has(condition):
                gallery = part.gallery()
                spans = {unit: part.rows(unit, condition.gamma, gallery) for unit in part.units()}
                for scorer in chosen:
                    found[scorer.name] += self._read(scorer, gallery, spans)
        return found

    def photograph_records(self, name: str) -> dict[str, list[Record]]:
        """The judged records of the photographs of a set of cases."""
        gallery = self.photographs[name]
        spans = _spans(gallery)
        return {
            scorer.name: [
                scorer.judge(*pair)
                for pair in zip(self._read(scorer, gallery, spans), gallery.cases, strict=True)
            ]
            for scorer in self.scorers
        }

    def _read(
        self, scorer: Scorer, gallery: Gallery, spans: Mapping[int, range]
    ) -> Iterator[Record]:
        """The stored records of some images of each unit."""
        store, digests, folder = open_store(self.out), gallery.digests(), gallery.folder
        for unit, rows in spans.items():
            if unit not in digests:
                raise ValueError(
                    f"{self.out}/{folder} lacks images: run the same command with --only generate, "
                    "on each host if there are several"
                )
            records = read_records(store, scorer, folder, unit, digests[unit], rows)
            if records is None:
                raise ValueError(
                    f"{scorer.name} has not scored all images of {folder}: run the same command "
                    "with --only score"
                )
            yield from records

    @functools.cached_property
    def distances(self) -> dict[str, list[tuple[Scorer, Distance]]]:
        """By set of cases, each with the scorer whose records it measures."""
        found = {}
        for cases in self.data.sets:
            real = self.photograph_records(cases.name) if cases.name in self.photographs else None
            found[cases.name] = [
                (scorer, distance)
                for scorer in self.scorers
                for distance in (
                    *scorer.distances,
                    *(
                        scorer.to_photographs(real[scorer.name])
                        if scorer.to_photographs is not None and real is not None
                        else ()
                    ),
                )
            ]
        return found

    def pictures(self, condition: Condition, lines: Sequence[int]) -> list[np.ndarray]:
        """Images [S, S, 3] uint8 of some cases (from 0), of the first seed."""
        part = next(part for part in self.parts if part.has(condition))
        return part.pictures(condition.gamma, lines)

    def everything(self) -> Iterator[Group]:
        """All images that were asked for, others of their runs, and photographs, whether or not a
        scorer reads them. Raises ValueError if images are missing."""
        for part in self.parts:
            gallery = part.gallery()
            for unit in part.units():
                if unit not in gallery.entries:
                    raise ValueError(f"{self.out}/{part.folder} lacks images: make them first")
                yield from gallery.groups(unit, GROUP)
        for photographs in (*self.photographs.values(), *self._told):
            for unit in photographs.units():
                yield from photographs.groups(unit, GROUP)

    def save(self, name: str, content: bytes) -> None:
        """Writes a file of the report."""
        write(open_store(self.out, owner="report-0000"), name, content)


def _spans(gallery: Photographs) -> dict[int, range]:
    return {unit: range(images) for unit, images in gallery.units().items()}


def _report(progress: Progress, done: int, total: int, more: int) -> None:
    progress(done + more, total)

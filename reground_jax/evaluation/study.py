"""ReGround's main experiment: what gamma and the wiring do to boxes and text, as a resumable run.

A folder holds the run: study.json (what is measured), parts/SERIES/FIRST-LAST.png (images, one
below the other) and .json (their records). What is there is not made again, so a killed run goes
on, and a larger one takes over what a smaller one has made. `report.py` makes tables of it.
"""

import dataclasses
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reground_jax.checkpoint import flatten, unflatten
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorers import Record, Scorer
from reground_jax.identity import differences, listed
from reground_jax.images import save_png, to_uint8
from reground_jax.json_text import parse_json
from reground_jax.layout import Layout
from reground_jax.pipeline import Pipeline
from reground_jax.sampling.gate import gate_table
from reground_jax.sampling.sweep import num_steps
from reground_jax.settings import Settings, Wiring

CHUNK = 50  # images of one file
GATES = ("/fuser/alpha_attn", "/fuser/alpha_dense")

Progress = Callable[[int, int], None]  # (images done, of all)


@runtime_checkable
class Generator(Protocol):
    """What makes images: `Pipeline`, or anything else that sweeps over gamma as it does."""

    def sweep(
        self, layouts: Sequence[Layout], *, gammas: Sequence[float], **keywords: Any
    ) -> dict[float, Any]:
        """gamma -> images [B, S, S, 3], float32 in 0..1; one per layout."""
        ...


@dataclass(frozen=True)
class Series:
    """The images of one set of cases, by one model under one wiring, at some gammas."""

    model: str  # a key of the study's models
    cases: str  # a key of the study's cases
    wiring: Wiring
    gammas: tuple[float, ...]

    def conditions(self) -> "list[Condition]":
        return [Condition(self.model, self.cases, self.wiring, gamma) for gamma in self.gammas]


@dataclass(frozen=True)
class Condition:
    """One point of the study."""

    model: str
    cases: str
    wiring: Wiring
    gamma: float

    @property
    def folder(self) -> str:
        return f"{self.model}-{self.cases}-{self.wiring}-{self.gamma:g}".replace(" ", "-")


def wiring_series(
    models: Sequence[str], cases: Sequence[str], gammas: Sequence[float]
) -> list[Series]:
    """The conditions of ReGround's figure, and those around it.

    models: the first is GLIGEN's, under every wiring and on every set of cases; the others are
    measured under the parallel wiring that they were trained for. cases: "heldout" at all gammas,
    "dropped" at all but 0, where nothing is grounded anyway, others at the largest gamma.
    """
    main, *others = models
    gammas, most = tuple(gammas), (max(gammas),)
    both: tuple[Wiring, ...] = ("sequential", "parallel")
    single: tuple[Wiring, ...] = ("no_grounding", "no_text", "text_first")
    reach = {"heldout": gammas, "dropped": tuple(gamma for gamma in gammas if gamma > 0)}
    return [
        *(Series(main, name, wiring, reach.get(name, most)) for name in cases for wiring in both),
        *(Series(main, "heldout", wiring, most) for wiring in single),
        *(Series(other, "heldout", "parallel", gammas) for other in others),
    ]


@dataclass(frozen=True)
class Study:
    """What is measured, in the folder `out`.

    models    name -> what loads its generator; called only if images are missing
    cases     name -> cases; those of "dropped" have the ids, and so the seeds, of "heldout"
    settings  steps, solver and guidance of every image; its wiring and gamma are not read
    identity  what else the images and records depend on: checksums of models and probes
    """

    out: Path
    models: Mapping[str, Callable[[], Generator]]
    cases: Mapping[str, Sequence[Case]]
    series: Sequence[Series]
    settings: Settings
    identity: Mapping[str, Any]
    scorer: Scorer
    batch_size: int | None = None

    def run(self, progress: Progress = lambda done, total: None) -> dict[Condition, list[Record]]:
        """The records of every condition, in the order of its cases.

        Raises ValueError if `out` holds the run of another study.
        """
        self.claim()
        total = sum(len(s.gammas) * len(self.cases[s.cases]) for s in self.series)
        done = 0
        progress(done, total)
        records: dict[Condition, list[Record]] = {}
        generators = {name: functools.cache(load) for name, load in self.models.items()}
        for series in self.series:
            for start, cases in self._chunks(series):
                report = functools.partial(_report, progress, done, total)
                found = self._chunk(series, start, cases, generators[series.model], report)
                for condition, chunk in found.items():
                    records.setdefault(condition, []).extend(chunk)
                    done += len(chunk)
                progress(done, total)
        return records

    def claim(self) -> None:
        """Notes in study.json whose folder this is, or raises ValueError if it is another's."""
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
        if found := differences(theirs, mine):
            raise ValueError(
                f"{self.out} holds another study: {listed(found)}. Give the old ones to go on, or "
                "another --out"
            )

    def images(self, condition: Condition, count: int) -> UInt8[np.ndarray, "B S S 3"]:
        """The first `count` images of a condition that has been run."""
        parts: list[np.ndarray] = []
        series = Series(condition.model, condition.cases, condition.wiring, (condition.gamma,))
        for start, cases in self._chunks(series):
            parts.extend(read_sheet(self._file(condition, start, len(cases), ".png"), len(cases)))
            if len(parts) >= count:
                break
        return np.stack(parts[:count])

    def _chunks(self, series: Series) -> Iterator[tuple[int, Sequence[Case]]]:
        cases = self.cases[series.cases]
        for start in range(0, len(cases), CHUNK):
            yield start, cases[start : start + CHUNK]

    def _file(self, condition: Condition, start: int, count: int, suffix: str) -> Path:
        name = f"{start:05}-{start + count - 1:05}{suffix}"
        return self.out / "parts" / condition.folder / name

    def _chunk(
        self,
        series: Series,
        start: int,
        cases: Sequence[Case],
        generator: Callable[[], Generator],
        report: Callable[[float], None],
    ) -> dict[Condition, list[Record]]:
        """The records of one chunk at every gamma; makes what is missing."""
        sheets = {c: self._file(c, start, len(cases), ".png") for c in series.conditions()}
        missing = [condition for condition, sheet in sheets.items() if not sheet.exists()]
        if missing:
            gammas = [condition.gamma for condition in missing]
            made = self._generate(generator(), series, gammas, cases, report)
            for condition, images in zip(missing, made, strict=True):
                save_sheet(sheets[condition], images)
        records = {}
        for condition, sheet in sheets.items():
            path = sheet.with_suffix(".json")
            if not path.exists():
                write_json(path, self.scorer(read_sheet(sheet, len(cases)), cases))
            records[condition] = json.loads(path.read_text())
        return records

    def _generate(
        self,
        generator: Generator,
        series: Series,
        gammas: Sequence[float],
        cases: Sequence[Case],
        report: Callable[[float], None],
    ) -> list[UInt8[np.ndarray, "B S S 3"]]:
        """Images by gamma. The fusers are on in the first steps, which all gammas share."""
        keywords = self.settings.to_json()
        for name in ("dtype", "gamma"):
            del keywords[name]
        tables = np.stack([gate_table(gamma, self.settings.num_steps) for gamma in gammas])
        steps, count = num_steps(tables), len(gammas) * len(cases)

        def progress(batch: int, batches: int, step: int) -> None:
            report(count * (batch + step / steps) / batches)

        with warnings.catch_warnings():
            # Real captions have words that a small model does not know; that is what is measured.
            warnings.filterwarnings("ignore", message="this model does not know")
            images = generator.sweep(
                [case.layout for case in cases],
                gammas=gammas,
                **keywords | {"wiring": series.wiring},
                seeds=[seed_of(case) for case in cases],
                batch_size=self.batch_size,
                output="numpy",
                progress=progress,
            )
        return [to_uint8(images[gamma], value_range="0..1") for gamma in gammas]


def _report(progress: Progress, done: int, total: int, more: float) -> None:
    progress(done + int(more), total)


def seed_of(case: Case) -> int:
    """The image's seed, from the layout's name: the same under every condition."""
    digest = hashlib.sha256(str(case.layout.id).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def with_scaled_gates(pipe: Pipeline, scale: float) -> Pipeline:
    """The pipeline with tanh of every fuser's gates times `scale`, at most 0.999 in size."""

    def scaled(name: str, leaf: jax.Array) -> jax.Array:
        if not name.endswith(GATES):
            return leaf
        gate = jnp.clip(scale * jnp.tanh(leaf.astype(jnp.float32)), -0.999, 0.999)
        return jax.device_put(jnp.arctanh(gate).astype(leaf.dtype), leaf.sharding)

    leaves = ((name, scaled(name, leaf)) for name, leaf in flatten(pipe.params))
    return dataclasses.replace(pipe, params=unflatten(leaves))


def save_sheet(path: Path, images: UInt8[np.ndarray, "B S S 3"]) -> None:
    """Images one below the other, as one PNG that appears whole or not at all."""
    save_png(path, images.reshape(-1, *images.shape[2:]))


def read_sheet(path: Path, count: int) -> UInt8[np.ndarray, "B S S 3"]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    return pixels.reshape(count, -1, *pixels.shape[1:])


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value) + "\n")
    os.replace(part, path)

"""What a study may do beside its report: calibrate, and export its images for other programs."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from reground_jax.basics.home import expand_home
from reground_jax.batch.store import open_store
from reground_jax.evaluation.data import Data
from reground_jax.evaluation.data_sets.export import export_coco
from reground_jax.evaluation.scorer import Scorer, TradeOff, metrics_of
from reground_jax.evaluation.scorers.detections import with_rules
from reground_jax.evaluation.studies.calibration import YOLO, calibrate, chosen_rules, freeze
from reground_jax.evaluation.studies.conditions import ENDS, Condition
from reground_jax.evaluation.studies.scores import FOLDER
from reground_jax.evaluation.studies.study import Study

CALIBRATION = "calibration.json"


def check_calibration(study: Study) -> None:
    """Raises ValueError unless the study has the sequential wiring alone, at the paper's gammas,
    with a CLIP and a detector, and if another wiring was scored before."""
    if {series.method for series in study.series} != {ENDS[0]}:
        raise ValueError(f"--calibrate is for --wirings {ENDS[0]} alone, before others are scored")
    store = open_store(study.out)
    for folder in store.names(FOLDER):
        for gallery in store.names(f"{FOLDER}/{folder}/images"):
            if gallery.endswith(tuple(f"-{method}" for method in ENDS[1:])):
                raise ValueError(
                    f"{study.out} has scores of the {ENDS[1]} wiring: calibrate before, in a new "
                    "study"
                )
    if not set(_conditions(study).values()) <= set(study.conditions()):
        raise ValueError(f"--calibrate needs --gammas {','.join(f'{g:g}' for g in sorted(YOLO))}")
    if not all(_kinds(study)):
        raise ValueError("--calibrate needs a CLIP and a detector among --scorers")
    _local(study.out)


def _conditions(study: Study) -> dict[float, Condition]:
    main, model = study.data.sets[0], next(iter(study.models))
    return {gamma: Condition(model, main.name, ENDS[0], gamma) for gamma in YOLO}


def _kinds(study: Study) -> tuple[list[Scorer], list[Scorer]]:
    """The CLIPs and the detectors, by their names."""
    clips = [scorer for scorer in study.scorers if scorer.name.startswith("clip")]
    return clips, [scorer for scorer in study.scorers if scorer.name.startswith("detect")]


def write_calibration(study: Study) -> None:
    """Calibrates the study's CLIPs and detectors on its main set, and freezes the choice.

    Raises ValueError as `check_calibration` does.
    """
    check_calibration(study)
    main, by_gamma = study.data.sets[0], _conditions(study)
    clips, detectors = _kinds(study)
    stored = {gamma: study.stored(condition) for gamma, condition in by_gamma.items()}
    found = calibrate(
        {
            scorer.name: {
                gamma: float(np.mean([record["score"] for record in records[scorer.name]]))
                for gamma, records in stored.items()
            }
            for scorer in clips
        },
        {
            scorer.name: {gamma: records[scorer.name] for gamma, records in stored.items()}
            for scorer in detectors
        },
        [*main.used] * len(study.seeds),
    )
    freeze(_local(study.out) / CALIBRATION, found)


def calibrated(
    out: str, scorers: Sequence[Scorer], data: Data
) -> tuple[list[Scorer], TradeOff | None]:
    """The scorers under the rules of the study's calibration, if there is one, and the trade-off:
    the data set's first of which both metrics are measured, with the chosen detector's metric."""
    measured = {metric.name for metric in metrics_of(scorers)}
    fitting = [t for t in data.trade_offs if {t.x.metric, t.y.metric} <= measured]
    if "://" in out or not (_local(out) / CALIBRATION).exists():
        return list(scorers), next(iter(fitting), None)
    name, metric, rules = chosen_rules(_local(out) / CALIBRATION)
    prefix = "" if name == "detector" else f"{name}."
    chosen = [with_rules(scorer, rules) if scorer.name == name else scorer for scorer in scorers]
    liked = [t for t in fitting if t.x.metric == f"{prefix}{metric}"]
    return chosen, next(iter([*liked, *fitting]), None)


def export(study: Study, folder: str) -> int:
    """Writes layouts in COCO's form, for other programs; returns how many.

    With the study's images if it has them all, and its photographs as scorers see them, a layout
    for each of them; otherwise those of the main set. Raises ValueError if the folder is not empty.
    """
    main, side = study.data.sets[0], next(iter(study.models.values())).side
    if any(unit not in part.finished() for part in study.parts for unit in part.units()):
        export_coco(expand_home(folder), main.used, size=side)
        return main.count
    cases = [case for group in study.everything() for case in group.cases]

    def images() -> Iterator[np.ndarray]:
        return itertools.chain.from_iterable(group.images for group in study.everything())

    export_coco(expand_home(folder), cases, images())
    return len(cases)


def _local(out: str) -> Path:
    if "://" in out:
        raise ValueError(f"--calibrate writes to a local folder, and {out} is a URL")
    return Path(out)

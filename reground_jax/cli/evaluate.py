"""`reground-jax evaluate`: how well a model follows boxes and text, by wiring and gamma."""

import argparse
import functools
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reground_jax.amounts import amount_text, checked_amount, read_amount
from reground_jax.basics.fields import check_name
from reground_jax.basics.wording import plural
from reground_jax.cli import request
from reground_jax.cli.data_sets import DATA_SETS, open_data, open_scorers
from reground_jax.cli.evaluate_options import BATCH_SIZE, GAMMAS, STAGES, UNIT, UNTOLD, add_all
from reground_jax.cli.options import made
from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import COUNTED, Bar, hint, say
from reground_jax.cli.sampling import DEFAULT_MODEL, Found, Setup, find_model, load
from reground_jax.evaluation.studies.conditions import ENDS, SINGLE
from reground_jax.settings import Settings

if TYPE_CHECKING:
    from reground_jax.batch.run import Run
    from reground_jax.batch.unit import Sampler
    from reground_jax.evaluation.studies.study import Model, Study
    from reground_jax.pipeline import Pipeline

EXAMPLES = """\
examples:
  reground-jax evaluate --out study
      the model that comes with the package: GLIGEN's and ReGround's wiring on 250 layouts.
      study/report.md has the tables and figures. If it is interrupted, run the same command
      again to resume
  reground-jax evaluate --layouts 1000 --gammas 0,0.1,0.2,0.3,0.5,0.8,1 --out study
      the full study, which goes on with what the smaller one has made
  reground-jax evaluate --layouts 1000 --plan
      how many images that is, and how long it will take

docs/protocol.md is the whole protocol."""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "evaluate",
        help="measure how well a model follows boxes and text, by wiring and gamma",
        description="Measures how well a model follows boxes and text under GLIGEN's and "
        "ReGround's wiring: makes images of a set of layouts, scores them, and writes a report "
        "with intervals.",
        epilog=EXAMPLES,
    )
    add_all(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    from reground_jax.batch.hosts import find_share, start_distributed

    setup = made(Setup, arguments, batch_size=BATCH_SIZE)
    fields = request.checked_settings(arguments)
    check_arguments(arguments)
    if arguments.answers:
        return show_answers(arguments)
    share = find_share(arguments.host_index, arguments.host_count, os.environ)
    data = open_data(arguments)
    wanted = getattr(arguments, "scorers", DATA_SETS[arguments.data].scorers)
    scorers, missing = open_scorers(wanted, data)
    if missing and not arguments.plan:
        raise ValueError(missing[0])
    models = find_models(arguments, setup)
    first = next(iter(models.values()))
    study = build_study(arguments, setup, models, first.settings(fields), data, scorers)
    configs = {name: found.config for name, found in models.items()}
    if arguments.plan:
        return show_plan(study, configs, arguments.rate, missing)
    if arguments.export is not None:
        from reground_jax.evaluation.studies.extras import export

        say(f"{plural(export(study, arguments.export), 'layout')} exported")
        print(arguments.export)
        return 0
    if arguments.only != "report":
        share = start_distributed(share, None)
    return run_stages(arguments, study, share, configs)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises ValueError for values that need no model to be refused."""
    if isinstance(arguments.gate_scale, str) or not arguments.gate_scale > 0:
        raise ValueError(f"--gate-scale is {arguments.gate_scale}: give a number above 0")
    if arguments.only is not None:
        check_name("step", arguments.only, STAGES)
    for name in ("pairs", "unit_lines"):
        count = getattr(arguments, name)
        if count is not None and (not isinstance(count, int) or count < 1):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is {count}: give a whole number, at least 1")
    if arguments.rate is not None and (isinstance(arguments.rate, str) or not arguments.rate > 0):
        raise ValueError(f"--rate is {arguments.rate}: give TFLOP/s, a number above 0")
    for wiring in getattr(arguments, "wirings", ()):
        check_name("wiring", wiring, (*ENDS, *SINGLE))
    fractions(getattr(arguments, "gammas", GAMMAS))
    more_methods(arguments)


def run_stages(
    arguments: argparse.Namespace, study: "Study", share: Any, configs: dict[str, Any]
) -> int:
    """Generates, scores and reports, or one of these; returns the exit code."""
    from reground_jax.evaluation.reports.pairs import write_pairs
    from reground_jax.evaluation.reports.report import write_report
    from reground_jax.evaluation.studies.extras import (
        CALIBRATION,
        check_calibration,
        write_calibration,
    )
    from reground_jax.evaluation.studies.making import Interrupted
    from reground_jax.evaluation.studies.plan import save_rate

    if arguments.calibrate:
        check_calibration(study)
    if arguments.only in (None, "generate"):
        hint("compiling ...")
        try:
            with Bar("generating", bar_format=COUNTED) as bar:
                images = study.generate(share, bar.show, say)
            save_rate(study, configs, images)
        except Interrupted as interrupted:
            say("stopped: run the same command again to resume")
            return 128 + interrupted.signal
    if arguments.only in (None, "score"):
        with Bar("scoring", bar_format=COUNTED) as bar:
            done, total = study.score(share, bar.show)
        if done < total:
            say(f"{total - done} of {total} images are not there yet, and were not scored")
    if arguments.only not in (None, "report") or (arguments.only is None and share.count > 1):
        if arguments.only is None:
            say("when all hosts are done, run the same command once with --only report")
        print(study.out)
        return 0
    if arguments.calibrate:
        write_calibration(study)
        say(f"calibration: {study.out}/{CALIBRATION}; it is used from now on")
        return 0
    hint("computing intervals ...")
    with study.stage("report", share):
        write_report(study, command_of(arguments))
        if arguments.pairs is not None:
            say(f"pairs to compare: {study.out}/{write_pairs(study, arguments.pairs)}")
    print(f"{study.out}/report.md")
    return 0


def show_answers(arguments: argparse.Namespace) -> int:
    from reground_jax.evaluation.reports.pairs import count_answers

    chosen = count_answers(arguments.out, arguments.answers)
    total = sum(chosen.values())
    for method, count in chosen.items():
        percent = f" ({100 * count / total:.1f} %)" if total else ""
        print(f"{method}: {count} of {plural(total, 'answer')}{percent}")
    return 0


def show_plan(
    study: "Study", configs: dict[str, Any], rate: float | None, missing: Sequence[str]
) -> int:
    from reground_jax.evaluation.studies.plan import measured_rate, plan, text

    rate = measured_rate(study) if rate is None else rate
    print(text(plan(study, configs), study, rate, missing))
    return 0


def fractions(gammas: Sequence[Any]) -> list[float]:
    """Each gamma once, in order, checked by Settings."""
    checked = [Settings(gamma=gamma).gamma for gamma in gammas]
    if not checked:
        raise ValueError("--gammas is empty: give at least one fraction")
    for gamma in checked:
        if isinstance(gamma, tuple):
            parts = "/".join(f"{part:g}" for part in gamma)
            raise ValueError(f"--gammas has {parts}: a study compares plain fractions")
    return sorted(set(checked))  # type: ignore[arg-type]


def more_methods(arguments: argparse.Namespace) -> list[str]:
    """The methods besides the main wirings, each once. Raises ValueError for an invalid one."""
    couplings = getattr(arguments, "couplings", ())
    amounts = [checked_amount("coupling", read_amount(text)) for text in couplings]
    coupled = [f"coupled:{amount_text(c)}" for c in amounts if c not in (0, 1)]
    guided = [
        f"{method}+{wiring}" for method in getattr(arguments, "guidances", ()) for wiring in ENDS
    ]
    for method in guided:
        Settings().with_method(method)
    return list(dict.fromkeys([*coupled, *guided]))


def find_models(arguments: argparse.Namespace, setup: Setup) -> dict[str, Found]:
    """The models to measure, the main one first. Raises ValueError or OSError."""
    found = {"gligen": find_model(setup.model, setup.cache)}
    second = arguments.parallel_model
    if second is None and setup.model == DEFAULT_MODEL:
        second = "emoji-parallel"
    if second is not None:
        found["trained-parallel"] = find_model(second, setup.cache)
    return found


def build_study(
    arguments: argparse.Namespace,
    setup: Setup,
    models: dict[str, Found],
    settings: Settings,
    data: Any,
    scorers: Sequence[Any],
) -> "Study":
    """The study that the arguments describe. Loads no model."""
    from reground_jax.basics.home import expand_home
    from reground_jax.evaluation.studies.conditions import wiring_series
    from reground_jax.evaluation.studies.extras import calibrated
    from reground_jax.evaluation.studies.study import Study

    theirs = getattr(arguments, "gammas_of_more", None)
    batch_size = setup.batch_size or BATCH_SIZE
    out = arguments.out if "://" in arguments.out else str(expand_home(arguments.out))
    scorers, trade_off = calibrated(out, scorers, data)
    return Study(
        out=out,
        models={
            name: _model(found, setup, arguments, name, settings.dtype)
            for name, found in models.items()
        },
        data=data,
        series=wiring_series(
            list(models),
            data.sets,
            fractions(getattr(arguments, "gammas", GAMMAS)),
            more_methods(arguments),
            None if theirs is None else fractions(theirs),
            getattr(arguments, "wirings", (*ENDS, *SINGLE)),
        ),
        settings=settings,
        identity={
            "checksums": {name: found.checksum for name, found in models.items()},
            "gate_scale": arguments.gate_scale,
        },
        scorers=scorers,
        trade_off=trade_off,
        batch_size=batch_size,
        unit_lines=arguments.unit_lines or batch_size * max(2, UNIT // batch_size),
        seeds=tuple(getattr(arguments, "seeds", (0,))),
    )


def _model(
    found: Found, setup: Setup, arguments: argparse.Namespace, name: str, dtype: str | None
) -> "Model":
    from reground_jax.evaluation.studies.study import Model

    named = setup.model if name == "gligen" else arguments.parallel_model or "emoji-parallel"
    config = found.config
    assert config is not None

    @functools.cache
    def loaded() -> Any:
        return load_pipeline(found, setup, dtype, arguments.gate_scale)

    def sampler(run: "Run") -> "Sampler":
        return sampler_on(loaded(), run)

    return Model(str(named), found.checksum, sampler, config.side, found.kind())


def load_pipeline(found: Found, setup: Setup, dtype: str | None, gate_scale: float) -> "Pipeline":
    """The model on this machine's devices."""
    from reground_jax.batch.sampler import local_devices
    from reground_jax.evaluation.studies.gates import with_scaled_gates

    pipe = load(found.directory, dtype, setup, devices=local_devices())
    return pipe if gate_scale == 1 else with_scaled_gates(pipe, gate_scale)


def sampler_on(pipe: "Pipeline", run: "Run") -> "Sampler":
    from reground_jax.batch.sampler import PipelineSampler

    return PipelineSampler(pipe, run)


def command_of(arguments: argparse.Namespace) -> str:
    """The command that repeats this study, without options that do not affect its numbers."""
    words = ["reground-jax", "evaluate"]
    defaults = default_arguments()
    for action in study_parser().actions:
        value = getattr(arguments, action.dest, None)
        if value != getattr(defaults, action.dest, None) and action.dest not in UNTOLD:
            repeated = isinstance(action, argparse._AppendAction)
            for one in (value or []) if repeated else [value]:
                words += [action.option_strings[0], *words_of(one)]
    return shlex.join([*words, "--out", str(arguments.out)])


def words_of(value: Any) -> list[str]:
    """An option's value as words that parse to the same value."""
    if value is True:
        return []
    if not isinstance(value, list):
        return [str(value)]
    items = [str(item) for item in value]
    apart = len(items) == 3 or any("=" in item for item in items)  # see `read_gammas`, `read_items`
    return items if apart else [",".join(items)]


def study_parser() -> Parser:
    return add(Parser().add_subparsers())


def default_arguments() -> argparse.Namespace:
    return study_parser().parse_args([])

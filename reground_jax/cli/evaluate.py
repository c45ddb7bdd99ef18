"""`reground-jax evaluate`: how well a model follows boxes and text, by wiring and gamma."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reground_jax.amounts import amount_text, checked_amount, read_amount
from reground_jax.basics.home import expand_home
from reground_jax.basics.options import (
    AMOUNTS,
    NAMES,
    NUMBERS,
    Option,
    read_gammas,
    read_items,
    read_number,
)
from reground_jax.cli import request
from reground_jax.cli.options import add_option, add_options, made
from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import COUNTED, Bar, hint
from reground_jax.cli.sampling import DEFAULT_MODEL, Found, Setup, find_model, load
from reground_jax.evaluation.conditions import ENDS
from reground_jax.settings import Settings

if TYPE_CHECKING:
    from reground_jax.evaluation.study import Study
    from reground_jax.pipeline import Pipeline

GAMMAS = (0, 0.3, 1)
BATCH_SIZE = 25
# Options of a study's images; the probes were trained on images of the model's own size.
SETTINGS = ("num_steps", "guidance_scale", "guidance_interval", "solver", "eta", "dtype")
UNTOLD = ("cache", "no_cache", "out")  # options that do not affect a study's numbers
COUPLINGS = Option(
    "also measure the wiring coupled with these couplings, as of generate --coupling: 0.5 between "
    "the two wirings, down=0,mid=0 by part of the U-Net. Separated by spaces, or by commas if none "
    "is by part. 0 and 1 are the two wirings, which are measured anyway",
    "C,...",
    read=read_items,
    name="--couplings",
    group="study",
    words=AMOUNTS,
)
GAMMAS_OF_MORE = Option(
    "gammas of --couplings and --attention-guidance (default: --gammas, without 0)",
    "G,...",
    read=read_gammas,
    name="--gammas-of-more",
    group="study",
    words=NUMBERS,
)
ATTENTION_GUIDANCE = Option(
    "also measure both wirings with these methods of attention guidance, as of generate "
    "--attention-guidance",
    "NAME,...",
    read=read_items,
    name="--attention-guidance",
    group="study",
    words=NAMES,
)
EXAMPLES = """\
examples:
  reground-jax evaluate --out study
      the model that comes with the package: GLIGEN's and ReGround's wiring on 250 layouts.
      study/report.md has the tables, tradeoff.svg the figure, grid.png pictures. If it is
      interrupted, run the same command again to resume
  reground-jax evaluate --layouts 1000 --gammas 0,0.1,0.2,0.3,0.5,0.8,1 --out study
      the full study, which reuses what the smaller one has made"""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "evaluate",
        help="measure how well a model follows boxes and text, by wiring and gamma",
        description="Measures how well a model of pictograms follows boxes and text: small "
        "classifiers score its images under GLIGEN's and ReGround's wiring.",
        epilog=EXAMPLES,
    )
    group = parser.group("study")

    def option(name: str, default: Any, text: str, **keywords: Any) -> None:
        shown = "" if default is None else f" (default: {default})"
        group.add_argument(name, default=default, help=text + shown, **keywords)

    option("--layouts", 250, "held-out layouts, 8 to 1000", metavar="N", type=read_number)
    request.add_variants(
        parser, "gammas", "study",
        "fractions 0..1 of the steps, counted from the first, in which the boxes are used (gamma "
        f"in ReGround's paper) (default: {','.join(map(str, GAMMAS))})",
    )  # fmt: skip
    add_option(parser, "couplings", COUPLINGS)
    add_option(parser, "guidances", ATTENTION_GUIDANCE)
    add_option(parser, "gammas_of_more", GAMMAS_OF_MORE)
    option("--nsr1k", None, "also measure LayoutGPT's gpt4.counting.*.json", metavar="FILE")
    option(
        "--gate-scale", 1.0, "multiplies the gates (the strength) of the layers that read boxes, "
        "to test whether weak gates explain a result", metavar="S", type=read_number,
    )  # fmt: skip
    group.add_argument(
        "--rich-phrases", action="store_true",
        help="also name tints and poses in the phrases, to test whether plain phrases explain a "
        "result",
    )  # fmt: skip
    request.add_settings_options(parser, only=SETTINGS)
    add_options(parser, Setup, defaults={"batch_size": BATCH_SIZE})
    parser.group("model").add_argument(
        "--parallel-model", metavar="DIR",
        help="a second model, trained under the parallel wiring (default: emoji-parallel with the "
        "default model, else none)",
    )  # fmt: skip
    parser.group("output").add_argument(
        "--out", default="evaluation", metavar="DIR",
        help="folder of the study (default: evaluation)",
    )  # fmt: skip
    parser.alias("--out", "-o", "--output")
    return parser


def run(arguments: argparse.Namespace) -> int:
    setup = made(Setup, arguments, batch_size=BATCH_SIZE)
    fields = request.checked_settings(arguments)
    gammas = fractions(getattr(arguments, "gammas", GAMMAS))
    more = more_methods(arguments)
    if not isinstance(arguments.layouts, int) or arguments.layouts < 8:
        raise ValueError(f"--layouts is {arguments.layouts}: give a whole number, at least 8")
    if isinstance(arguments.gate_scale, str) or not arguments.gate_scale > 0:
        raise ValueError(f"--gate-scale is {arguments.gate_scale}: give a number above 0")

    model = find_model(setup.model, setup.cache)
    from reground_jax.evaluation.report import write_report

    study = build_study(arguments, setup, model, model.settings(fields), gammas, more)
    hint("compiling ...")
    with Bar("measuring", bar_format=COUNTED) as bar:
        records = study.run(bar.show)
    write_report(study, records, command_of(arguments))
    print(study.out / "report.md")
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


def build_study(
    arguments: argparse.Namespace,
    setup: Setup,
    model: Found,
    settings: Settings,
    gammas: list[float],
    more: Sequence[str] = (),
) -> "Study":
    """The study that the arguments describe. Finds models and files, but loads no model."""
    from reground_jax.emoji.cases import TITLES, heldout_cases, nsr1k_cases, with_rich_phrases
    from reground_jax.emoji.probes import Probes
    from reground_jax.emoji.scorer import TRADE_OFF, emoji_scorer
    from reground_jax.evaluation.cases import with_half_the_boxes
    from reground_jax.evaluation.conditions import wiring_series
    from reground_jax.evaluation.pictures import with_scaled_gates
    from reground_jax.evaluation.study import Study

    theirs = getattr(arguments, "gammas_of_more", None)
    if theirs is not None:
        theirs = fractions(theirs)
    models = {"gligen": model}
    second = arguments.parallel_model
    if second is None and setup.model == DEFAULT_MODEL:
        second = "emoji-parallel"
    if second is not None:
        models["trained-parallel"] = find_model(second, setup.cache)
    probes = Probes.load()
    heldout = heldout_cases(arguments.layouts)
    cases = {"heldout": heldout, "dropped": with_half_the_boxes(heldout)}
    if arguments.nsr1k is not None:
        cases["nsr1k"] = nsr1k_cases(arguments.nsr1k, probes.names.categories[:-1])
    if arguments.rich_phrases:
        cases = {name: [with_rich_phrases(case) for case in found] for name, found in cases.items()}

    def loader(directory: Path):
        def get() -> "Pipeline":
            pipe = load(directory, settings.dtype, setup)
            scale = arguments.gate_scale
            return pipe if scale == 1 else with_scaled_gates(pipe, scale)

        return get

    return Study(
        out=expand_home(arguments.out),
        models={name: loader(found.directory) for name, found in models.items()},
        cases=cases,
        series=wiring_series(list(models), list(cases), gammas, more, theirs),
        settings=settings,
        identity={
            "checksums": {name: found.checksum for name, found in models.items()},
            "gate_scale": arguments.gate_scale,
            "rich_phrases": arguments.rich_phrases,
        },
        scorers=[emoji_scorer(probes)],
        trade_off=TRADE_OFF,
        titles=TITLES,
        batch_size=setup.batch_size,
    )


def command_of(arguments: argparse.Namespace) -> str:
    """The command that repeats this study, without options that do not affect its numbers."""
    words = ["reground-jax", "evaluate"]
    defaults = default_arguments()
    for action in study_parser().actions:
        value = getattr(arguments, action.dest, None)
        if value != getattr(defaults, action.dest, None) and action.dest not in UNTOLD:
            words += [action.option_strings[0], *words_of(value)]
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

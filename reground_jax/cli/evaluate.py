"""`reground-jax evaluate`: how well a model follows boxes and text, by wiring and gamma."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reground_jax.cli import request
from reground_jax.cli.progress import Bar
from reground_jax.cli.sampling import DEFAULT_MODEL, add_cache_option, load, locate
from reground_jax.home import expand_home
from reground_jax.settings import DTYPES, SOLVER_NAMES, Settings

if TYPE_CHECKING:
    from reground_jax.evaluation.study import Study
    from reground_jax.pipeline import Pipeline

GAMMAS = "0,0.3,1"
UNTOLD = ("cache", "no_cache", "out")  # options that leave a study's numbers as they are
EXAMPLES = """\
examples:
  reground-jax evaluate --out study
      the small model that comes with the package: both wirings on 250 layouts; study/report.md has
      the tables, tradeoff.svg the figure, grid.png pictures. Killed, the same command goes on
  reground-jax evaluate --layouts 1000 --gammas 0,0.1,0.2,0.3,0.5,0.8,1 --out study
      the full study, which takes over what the smaller one has made"""


def add(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate",
        help="measure how well a model follows boxes and text, by wiring and gamma",
        description="Measures, on pictograms, how well a model follows boxes and text.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def option(name: str, default: Any, text: str, **keywords: Any) -> None:
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(name, default=default, help=text + shown, **keywords)

    option("--out", "evaluation", "folder of the study", metavar="DIR")
    option("--layouts", 250, "held-out layouts, 8 to 1000", metavar="N", type=request.number)
    option("--gammas", GAMMAS, "fractions of the steps with boxes on", metavar="G,G,...")
    option("--model", DEFAULT_MODEL, "the model; of the emoji world", metavar="DIR")
    option(
        "--parallel-model", None, "a second model, whose fusers were trained under the parallel "
        "wiring (default: emoji-parallel beside the default model, else none)", metavar="DIR",
    )  # fmt: skip
    option("--nsr1k", None, "LayoutGPT's gpt4.counting.*.json, to measure too", metavar="FILE")
    option("--steps", 20, "denoising steps", metavar="N", type=request.number)
    option("--solver", "dpmpp_2m", f"one of {', '.join(SOLVER_NAMES)}", metavar="NAME")
    option("--guidance-scale", 4.0, "of the text", metavar="S", type=request.number)
    option("--dtype", "float32", " or ".join(DTYPES), metavar="NAME")
    option("--batch-size", 25, "images at a time on each device", metavar="N", type=request.number)
    option(
        "--gate-scale", 1.0, "to test whether small gates explain a result: multiplies the fusers' "
        "gates", metavar="S", type=request.number,
    )  # fmt: skip
    parser.add_argument(
        "--rich-phrases", action="store_true",
        help="to test whether plain phrases explain a result: phrases tell tints and poses, too",
    )  # fmt: skip
    add_cache_option(parser)
    parser.add_argument("--no-cache", action="store_true", help="compile anew, and keep nothing")
    return parser


def run(arguments: argparse.Namespace) -> int:
    settings = Settings(
        num_steps=arguments.steps,
        solver=arguments.solver,
        guidance_scale=arguments.guidance_scale,
        dtype=arguments.dtype,
    )
    gammas = [gamma_of(text) for text in arguments.gammas.split(",")]
    for name, least in (("layouts", 8), ("batch_size", 1)):
        value = getattr(arguments, name)
        if not isinstance(value, int) or value < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is {value}: give a whole number, at least {least}")
    if isinstance(arguments.gate_scale, str) or arguments.gate_scale <= 0:
        raise ValueError(f"--gate-scale is {arguments.gate_scale}: give a number above 0")

    from reground_jax.evaluation.report import write_report

    study = build_study(arguments, settings, sorted(set(gammas)))
    with Bar("measuring", unit=" images") as bar:
        records = study.run(bar.show)
    write_report(study, records, command_of(arguments))
    print(study.out / "report.md")
    return 0


def gamma_of(text: str) -> float:
    """A gamma of the list, checked by Settings."""
    gamma = Settings(gamma=request.number(text)).gamma  # type: ignore[arg-type]
    assert isinstance(gamma, float)
    return gamma


def build_study(arguments: argparse.Namespace, settings: Settings, gammas: list[float]) -> "Study":
    """The study of these arguments. Finds models and files, and loads no model."""
    from reground_jax.emoji.cases import TITLES, heldout_cases, nsr1k_cases, with_rich_phrases
    from reground_jax.emoji.probes import Probes
    from reground_jax.emoji.scorer import TRADE_OFF, emoji_scorer
    from reground_jax.evaluation.cases import with_half_the_boxes
    from reground_jax.evaluation.conditions import wiring_series
    from reground_jax.evaluation.pictures import with_scaled_gates
    from reground_jax.evaluation.study import Study
    from reground_jax.model import read_description

    places = {"gligen": locate(arguments.model, arguments.cache)}
    second = arguments.parallel_model
    if second is None and arguments.model == DEFAULT_MODEL:
        second = "emoji-parallel"
    if second is not None:
        places["trained-parallel"] = locate(second, arguments.cache)
    probes = Probes.load()
    heldout = heldout_cases(arguments.layouts)
    cases = {"heldout": heldout, "dropped": with_half_the_boxes(heldout)}
    if arguments.nsr1k is not None:
        cases["nsr1k"] = nsr1k_cases(arguments.nsr1k, probes.names.categories[:-1])
    if arguments.rich_phrases:
        cases = {name: [with_rich_phrases(case) for case in found] for name, found in cases.items()}

    def loader(place: Path):
        def get() -> "Pipeline":
            keep = not arguments.no_cache
            pipe = load(place, settings.dtype, keep=keep, cache=arguments.cache)
            scale = arguments.gate_scale
            return pipe if scale == 1 else with_scaled_gates(pipe, scale)

        return get

    return Study(
        out=expand_home(arguments.out),
        models={name: loader(place) for name, place in places.items()},
        cases=cases,
        series=wiring_series(list(places), list(cases), gammas),
        settings=settings,
        identity={
            "checksums": {n: read_description(p).checksum for n, p in places.items()},
            "gate_scale": arguments.gate_scale,
            "rich_phrases": arguments.rich_phrases,
        },
        scorers=[emoji_scorer(probes)],
        trade_off=TRADE_OFF,
        titles=TITLES,
        batch_size=arguments.batch_size,
    )


def command_of(arguments: argparse.Namespace) -> str:
    """The command that makes this study again, without what leaves its numbers as they are."""
    words = ["reground-jax", "evaluate"]
    defaults = vars(default_arguments())
    for name, value in vars(arguments).items():
        if name in defaults and value != defaults[name] and name not in UNTOLD:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join([*words, "--out", str(arguments.out)])


def default_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    return add(parser.add_subparsers()).parse_args([])

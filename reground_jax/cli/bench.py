"""`reground-jax bench`: how fast this machine is, at a glance."""

import argparse
from typing import TYPE_CHECKING

from reground_jax.basics.atomic import write_json
from reground_jax.basics.fields import check_name
from reground_jax.cli.options import add_options, given, made
from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import hint
from reground_jax.cli.sampling import Setup, load, locate
from reground_jax.settings import DTYPES, Settings

if TYPE_CHECKING:
    from reground_jax.bench.cases import Work
    from reground_jax.pipeline import Pipeline

BENCHMARKS = ("unet", "generate", "attention", "vae", "text")
# One U-Net evaluation per step, with the fusers off for most steps, as in ReGround's paper.
DEFAULTS = {"num_steps": 10, "gamma": 0.3, "solver": "ddim", "dtype": DTYPES[0]}
EXAMPLES = """\
examples:
  reground-jax bench
      one denoising step of a small model with random weights
  reground-jax bench generate --preset sd14 --dtype bfloat16 --batch-size 8
      whole runs of GLIGEN at Stable Diffusion's size
  reground-jax bench unet --model my-model --out step.json
      one denoising step of your own model, and all repetitions in a file

`python -m benchmarks` in a checkout of the repository has more: start-up, scaling over devices, and
a comparison with diffusers."""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "bench",
        help="measure the speed of this machine",
        description="Measures a part of the work, with random weights or your own model.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "name", nargs="?", default="unet",
        help=f"what to measure: {', '.join(BENCHMARKS)} (default: unet)",
    )  # fmt: skip
    add_work_options(parser)
    add_options(parser, Setup, only=("model", "cache"), defaults={"model": "none: random weights"})
    parser.group("output").add_argument(
        "--out", metavar="FILE.json", help="write every repetition to this file"
    )
    parser.alias("--out", "-o", "--output")
    return parser


def add_work_options(parser: Parser) -> None:
    """What to measure, for this command and for `python -m benchmarks`."""
    group = parser.group("work")
    group.add_argument(
        "--preset", default="emoji", metavar="NAME",
        help="random weights of this size: tiny, emoji or sd14 (default: emoji)",
    )  # fmt: skip
    group.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="timed calls (default: 5)"
    )
    add_options(parser, Settings, only=("num_steps", "gamma", "dtype"), defaults=DEFAULTS)
    add_options(
        parser, Setup, only=("batch_size", "attention", "mapper"), defaults={"batch_size": 1}
    )


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that the options give. Raises ValueError."""
    if arguments.repeats < 1:
        raise ValueError(f"--repeats is {arguments.repeats}: give a whole number, at least 1")
    return made(Settings, arguments, **DEFAULTS)


def setup_of(arguments: argparse.Namespace) -> Setup:
    """What to measure on. Raises ValueError."""
    return made(Setup, arguments, batch_size=1, no_cache=True)


def work_of(pipe: "Pipeline", settings: Settings, setup: Setup) -> "Work":
    """`--batch-size` images on each of the pipeline's devices."""
    from reground_jax.bench.cases import Work

    return Work(settings, (setup.batch_size or 1) * len(pipe.devices))


def run(arguments: argparse.Namespace) -> int:
    check_name("benchmark", arguments.name, BENCHMARKS)
    settings, setup = settings_of(arguments), setup_of(arguments)
    named = given(arguments, Setup).get("model")
    model = None if named is None else locate(named, setup.cache)
    if named is None:
        hint(f"making random weights of preset {arguments.preset} ...")

    from reground_jax.bench.presets import random_model
    from reground_jax.bench.run import run as measure
    from reground_jax.pipeline import Pipeline

    if model is not None:
        pipe = load(model, settings.dtype, setup)
    else:
        weights = random_model(arguments.preset)
        pipe = Pipeline.from_model(
            weights,
            dtype=settings.dtype or "float32",
            attention=setup.attention,
            mapper=setup.mapper,
        )
    hint("compiling and measuring ...")
    work = work_of(pipe, settings, setup)
    record = measure(arguments.name, pipe, work, repeats=arguments.repeats)
    if arguments.out is not None:
        write_json(arguments.out, record, indent=2)
    return 0

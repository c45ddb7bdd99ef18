"""`reground-jax bench`: how fast this machine is, at a glance."""

import argparse

from reground_jax.atomic import write_json
from reground_jax.cli.sampling import add_cache_option, load, locate
from reground_jax.settings import DTYPES, Settings, check_name

BENCHMARKS = ("unet", "generate", "attention", "vae", "text")
EXAMPLES = """\
examples:
  reground-jax bench
      one denoising step of a small model with random weights
  reground-jax bench generate --preset sd14 --dtype bfloat16 --batch 8
      whole runs of GLIGEN at Stable Diffusion's size
  reground-jax bench unet --model my-model --out step.json
      one denoising step of your own model, and all repetitions in a file

`python -m benchmarks` in a checkout of the repository has more: start-up, scaling over devices, and
diffusers beside it."""


def add(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "bench",
        help="measure the speed of this machine",
        description="Measures a part of the work, with random weights or your own model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", nargs="?", default="unet", help=f"one of {', '.join(BENCHMARKS)} (default: unet)"
    )
    parser.add_argument("--model", metavar="DIR_OR_ID", help="measure this model")
    add_cache_option(parser)
    add_work_options(parser, preset="emoji")
    parser.add_argument("--out", metavar="FILE.json", help="write every repetition there")
    return parser


def add_work_options(parser: argparse.ArgumentParser, *, preset: str) -> None:
    """What to measure, for this command and for `python -m benchmarks`."""
    parser.add_argument(
        "--preset", default=preset,
        help=f"random weights of this size: tiny, emoji or sd14 (default: {preset})",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", default="float32", help=f"{' or '.join(DTYPES)} (default: float32)"
    )
    parser.add_argument("--steps", type=int, default=10, help="of whole runs (default: 10)")
    parser.add_argument("--gamma", type=float, default=0.3, help="of whole runs (default: 0.3)")
    parser.add_argument("--batch", type=int, help="images at once (default: one per device)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls (default: 5)")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The work that the options ask for. Raises ValueError."""
    for name in ("repeats", "batch"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: give at least 1")
    return Settings(
        num_steps=arguments.steps, gamma=arguments.gamma, solver="ddim", dtype=arguments.dtype
    )


def run(arguments: argparse.Namespace) -> int:
    check_name("benchmark", arguments.name, BENCHMARKS)
    settings = settings_of(arguments)
    model = None if arguments.model is None else locate(arguments.model, arguments.cache)

    from reground_jax.bench.cases import Work
    from reground_jax.bench.presets import random_model
    from reground_jax.bench.run import run as measure
    from reground_jax.pipeline import Pipeline

    if model is not None:
        pipe = load(model, settings.dtype, keep=False)
    else:
        pipe = Pipeline.from_model(random_model(arguments.preset), dtype=arguments.dtype)
    work = Work(settings, arguments.batch or len(pipe.devices))
    record = measure(arguments.name, pipe, work, repeats=arguments.repeats)
    if arguments.out is not None:
        write_json(arguments.out, record, indent=2)
    return 0

"""`reground-jax compile`: compile ahead of the first image, into the cache of all later runs."""

import argparse
import dataclasses
import time

from reground_jax.cli import request
from reground_jax.cli.progress import say
from reground_jax.cli.sampling import add_model_options, keep_programs, load, locate
from reground_jax.settings import Settings

EXAMPLES = """\
example:
  reground-jax compile --model my-model --steps 30 --batch-size 4
      later runs of these steps, size, solver and batch start without compiling; prompts, boxes,
      seeds, gamma and guidance scale may be any"""


def add(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "compile",
        help="compile for given settings, so that later runs start at once",
        description="Compiles what a run with these settings needs, into the compilation cache.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    request.add_settings_options(parser, wiring=True)
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N",
        help="images at a time on each device (default: 1, as `generate` makes)",
    )  # fmt: skip
    add_model_options(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    settings = Settings(**request.given_settings(arguments))
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size is {arguments.batch_size}: give at least 1")
    if arguments.no_cache:
        raise ValueError("--no-cache would keep nothing of what is compiled: leave it out")
    keep_programs(arguments.cache)  # where that cannot be, there is nothing to do
    directory = locate(arguments.model, arguments.cache)
    pipe = load(directory, settings.dtype, keep=True, cache=arguments.cache)

    from reground_jax.bench.cases import Denoising, Work
    from reground_jax.devices import compile_clock

    begin = time.perf_counter()
    with compile_clock() as seconds:
        work = Work(settings, arguments.batch_size * len(pipe.devices))
        ready = Denoising.of(pipe, work)
        if settings.guidance_interval != (0.0, 1.0):  # the steps outside of it
            unguided = dataclasses.replace(settings, guidance_scale=1.0)
            other = Denoising.of(pipe, dataclasses.replace(work, settings=unguided))
            other.run(other.start(), 0, 0)
        state = ready.run(ready.start(), 0, 0)
        pipe.decode(state.x).block_until_ready()
    took = time.perf_counter() - begin
    say(
        f"ready for {arguments.batch_size} images per device in {took:.1f} s "
        f"({seconds():.1f} s of them tracing and compiling)"
    )
    return 0

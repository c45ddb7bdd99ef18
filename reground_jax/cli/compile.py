"""`reground-jax compile`: compile ahead of time, into the cache that later runs use."""

import argparse
import dataclasses
import time

from reground_jax.basics.wording import plural
from reground_jax.cli import request
from reground_jax.cli.options import add_options, made
from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import hint, say
from reground_jax.cli.sampling import Setup, find_model, keep_programs, load

BATCH_SIZE = 1  # as in `generate`
EXAMPLES = """\
example:
  reground-jax compile --steps 30 --batch-size 4
      later runs with this number of steps, size, solver and batch start without compiling;
      prompts, boxes, seeds, gamma and guidance scale may be any"""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "compile",
        help="compile for given settings, so that later runs start at once",
        description="Compiles what a run with these settings needs, and keeps it in the cache.",
        epilog=EXAMPLES,
    )
    request.add_settings_options(parser)
    add_options(parser, Setup, defaults={"batch_size": BATCH_SIZE})
    return parser


def run(arguments: argparse.Namespace) -> int:
    setup = made(Setup, arguments, batch_size=BATCH_SIZE)
    size = setup.batch_size or BATCH_SIZE
    fields = request.checked_settings(arguments)
    if setup.no_cache:
        raise ValueError("--no-cache would discard everything that is compiled: leave it out")
    model = find_model(setup.model, setup.cache)
    keep_programs(setup.cache)  # an error here ends the command: compiling would be pointless
    settings = model.settings(fields)
    pipe = load(model.directory, settings.dtype, setup)
    hint("compiling ...")

    from reground_jax.bench.cases import Denoising, Work
    from reground_jax.devices import compile_clock

    begin = time.perf_counter()
    with compile_clock() as seconds:
        work = Work(settings, size * len(pipe.devices))
        ready = Denoising.of(pipe, work)
        if settings.guidance_interval != (0.0, 1.0):  # for the steps outside of it
            unguided = dataclasses.replace(settings, guidance_scale=1.0)
            Denoising.of(pipe, dataclasses.replace(work, settings=unguided)).compile()
        ready.compile()
        pipe.decode(ready.start().x).block_until_ready()
    took = time.perf_counter() - begin
    say(
        f"ready for {plural(size, 'image')} per device, after {took:.1f} s "
        f"({seconds():.1f} s of it compiling)"
    )
    return 0

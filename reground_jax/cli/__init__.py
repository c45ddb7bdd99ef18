"""The command line, `reground-jax`: one file per command; this one has what they share.

A command's module has `add(commands)`, which declares its options, and `run(arguments)`, which
returns the exit code. Requests are parsed and checked before anything imports JAX.

Exit codes: 0 done, 1 the work failed, 2 bad input (one sentence, no traceback), 130 interrupted,
141 the reader of the output is gone (as for a program that SIGPIPE ends).
"""

import contextlib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

# Renamed, because a file of this package is called `options`.
from reground_jax.basics.options import options as options_of
from reground_jax.cli import (
    app,
    batch,
    batch_verify,
    bench,
    compare,
    compile,
    convert,
    evaluate,
    export,
    generate,
    info,
    map,
    train,
)
from reground_jax.cli.parser import Parser
from reground_jax.settings import Settings
from reground_jax.version import __version__

DESCRIPTION = (
    "Images from a prompt and boxes that say where things go: GLIGEN, and ReGround, which follows "
    "both the boxes and the prompt. In JAX, on CPU, GPU and TPU."
)

EXAMPLES = """\
first steps, with the small model that comes with the package and then with GLIGEN's own:
  reground-jax generate "a cat and a pizza on a beach at night" \\
      --box "a cat@0.1,0.4,0.45,0.9" --box "a pizza@0.55,0.5,0.9,0.85"
  reground-jax convert masterful/gligen-1-4-generation-text-box my-model
  reground-jax generate "a teddy bear sitting next to a bird" --model my-model \\
      --box "a teddy bear@0,0.09,0.33,0.76" --box "a bird@0.55,0.11,1,0.8"

`reground-jax COMMAND --help` explains a command, with an example."""


# Keyword arguments in messages, and the options that set them here.
_OPTIONS = {field: option.name for field, option in options_of(Settings).items()}
_OPTIONS["box_format"] = "--box-format"
_KEYWORD = re.compile(rf"\b({'|'.join(_OPTIONS)})='?([\w.]+)'?")


def build_parser() -> Parser:
    parser = Parser(prog="reground-jax", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"reground-jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (
        generate, compare, app, batch, batch_verify, map, convert, export, info, evaluate, compile,
        bench, train,
    ):  # fmt: skip
        added = command.add(commands)
        added.set_defaults(run=command.run, parser=added)
        added.add_argument(
            "--debug", action="store_true", help="show the full traceback of an error"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Only --help and --version raise SystemExit."""
    try:
        try:
            return run(argv)
        finally:
            sys.stdout.flush()  # so that a closed pipe shows here, not when Python exits
    except BrokenPipeError:
        silence()
        return 141


def run(argv: Sequence[str] | None) -> int:
    """Runs one command; bad input and running out of memory are reported in one sentence."""
    debug = False
    try:
        parser = build_parser()
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            getattr(arguments, "parser", parser).refuse(unknown[0])
        if not hasattr(arguments, "run"):
            parser.print_help(sys.stderr)
            return 2
        debug = arguments.debug
        if not debug:
            quiet_orbax()
        with warnings_in_a_line():
            return arguments.run(arguments)
    except KeyboardInterrupt:
        print("reground-jax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        if debug:
            raise
        return fail(sentence(error), 2)
    except RuntimeError as error:
        if debug or "RESOURCE_EXHAUSTED" not in str(error):  # XLA's out-of-memory error
            raise
        return fail(
            "the device ran out of memory: use a smaller --height and --width, "
            "--dtype bfloat16, or a smaller --batch-size",
            1,
        )


def silence() -> None:
    """Discards what is still to be written, so that Python reports no error when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # not a real file, as in tests
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def fail(message: str, code: int) -> int:
    print(f"reground-jax: error: {message}", file=sys.stderr)
    return code


def sentence(error: ValueError | OSError) -> str:
    """The text to print for an error; an OSError's own begins with a number that helps nobody.

    Advice for Python, such as box_format='xywh', becomes --box-format xywh.
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return re.sub(_KEYWORD, lambda found: f"{_OPTIONS[found[1]]} {found[2]}", str(error))


@contextlib.contextmanager
def warnings_in_a_line() -> Iterator[None]:
    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"reground-jax: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield


@functools.cache
def quiet_orbax() -> None:
    """Keeps the tracebacks of Orbax and TensorStore off stderr, for the rest of the process.

    They log every error that they raise; and reads in progress when a damaged file is found end
    later, on other threads, in an event loop that is already closed.
    """
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            others(unraisable)

    sys.unraisablehook = hook

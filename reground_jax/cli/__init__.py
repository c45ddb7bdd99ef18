"""The command line, `reground-jax`: one file per command, and here what they share.

A command's module has `add(commands)`, which declares its options, and `run(arguments)`, which
returns the exit code. Requests are parsed and checked before anything imports JAX.

Exit codes: 0 done, 1 the work failed, 2 bad input (one sentence, no traceback), 130 interrupted.
"""

import argparse
import contextlib
import difflib
import functools
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from reground_jax.cli import (
    batch,
    batch_verify,
    bench,
    compare,
    compile,
    convert,
    evaluate,
    generate,
    info,
    train,
)
from reground_jax.version import __version__

DESCRIPTION = """\
Images from a prompt and boxes that say where things go: GLIGEN, and ReGround, which follows both
the boxes and the prompt. In JAX, on CPU, GPU and TPU."""

EXAMPLES = """\
first steps, with the small model that comes with the package, and with GLIGEN's:
  reground-jax generate "a cat and a pizza on a beach at night" \\
      --box "a cat@0.1,0.4,0.45,0.9" --box "a pizza@0.55,0.5,0.9,0.85"
  reground-jax convert masterful/gligen-1-4-generation-text-box my-model
  reground-jax generate "a teddy bear sitting next to a bird" --model my-model \\
      --box "a teddy bear@0,0.09,0.33,0.76" --box "a bird@0.55,0.11,1,0.8"

`reground-jax COMMAND --help` explains a command, with an example."""


# What other programs call our options.
OTHER_NAMES = {
    "--num-steps": "--steps",
    "--num-inference-steps": "--steps",
    "--cfg": "--guidance-scale",
    "--cfg-scale": "--guidance-scale",
    "--scale": "--guidance-scale",
    "--sampler": "--solver",
    "--scheduler": "--solver",
    "--boxes": "--box",
    "--tau": "--gamma",
    "--seeds": "--seed",
    "--seed": "--seeds",
    "--output": "--out",
    "--checkpoint": "--model",
    "-o": "--out",
    "-m": "--model",
}


class Parser(argparse.ArgumentParser):
    """argparse, with errors that go the way of all other bad input."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")

    def refuse(self, unknown: str) -> NoReturn:
        """Raise ValueError for a word that no option of this command takes, with the nearest."""
        option, _, _ = unknown.partition("=")
        if not option.startswith("-"):
            self.error(f"{unknown!r} is one argument too many: put texts with spaces in quotes")
        options = self._option_string_actions
        near = [OTHER_NAMES.get(option, ""), *difflib.get_close_matches(option, options)]
        hints = [f"did you mean {name}? S" for name in near if name in options]
        if option == "--prompt":
            hints = ["the prompt stands alone, without an option; s"]
        raise ValueError(
            f"{option} is no option of `{self.prog}`: {hints[0] if hints else 's'}ee "
            f"`{self.prog} --help`"
        )


# Keywords in messages, and the options that they are here.
_OPTIONS = {
    name: "--" + name.removeprefix("num_").replace("_", "-")
    for name in (
        "box_format", "dtype", "eta", "gamma", "guidance_scale", "height", "max_boxes",
        "num_steps", "solver", "width", "wiring",
    )
}  # fmt: skip
_KEYWORD = re.compile(rf"\b({'|'.join(_OPTIONS)})='?([\w.]+)'?")


def build_parser() -> Parser:
    parser = Parser(
        prog="reground-jax",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"reground-jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (
        generate, compare, batch, batch_verify, convert, info, evaluate, compile, bench, train,
    ):  # fmt: skip
        added = command.add(commands)
        added.set_defaults(run=command.run, parser=added)
        added.add_argument(
            "--debug", action="store_true", help="show the whole traceback of an error"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Only --help and --version raise SystemExit."""
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
    except (ValueError, OSError) as error:
        if debug:
            raise
        return fail(sentence(error), 2)
    except RuntimeError as error:
        if debug or "RESOURCE_EXHAUSTED" not in str(error):  # how XLA says out of memory
            raise
        return fail(
            "the device ran out of memory: take a smaller --height and --width, "
            "--dtype bfloat16, or fewer images at a time",
            1,
        )


def fail(message: str, code: int) -> int:
    print(f"reground-jax: error: {message}", file=sys.stderr)
    return code


def sentence(error: ValueError | OSError) -> str:
    """What to print of an error; the system's own begin with a number that helps nobody.

    Advice such as box_format='xywh' is for Python: here it becomes --box-format xywh.
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

    They log every error that they raise; and reads that were under way when a damaged file was met
    end, on other threads and later, in an event loop that is closed.
    """
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            others(unraisable)

    sys.unraisablehook = hook

"""What the processes of test_convert_at_once.py do, without the imports of a test (torch)."""

import contextlib
import io
import sys
import traceback
from collections.abc import Callable
from typing import Any

import reground_jax.convert.conversion as converting
from reground_jax.cli import main
from reground_jax.convert import locate

WAIT = 240  # seconds for a process; a conversion takes 2 on a quiet machine


def answer(results: Any, work: Callable[[], Any]) -> None:
    """Puts the result of the work, or the error that it ends with."""
    try:
        results.put(("done", work()))
    except BaseException as error:
        results.put((type(error).__name__, f"{error}\n{traceback.format_exc()}"))


def load(source: str, cache: str, barrier: Any, results: Any) -> None:
    """What `Pipeline.load` does first; puts the directory, and how often this process converted."""
    conversions = []

    def counted(*arguments: Any) -> Any:
        conversions.append(arguments)
        return converting.convert(*arguments)

    locate.convert = counted
    barrier.wait(WAIT)
    answer(results, lambda: (str(locate.model_directory(source, cache=cache)), len(conversions)))


def wait_while_writing(started: Any, go_on: Any) -> None:
    """Makes conversions of this process wait between their first array and the second."""
    read = converting.read_arrays

    def arrays(*arguments: Any) -> Any:
        for number, pair in enumerate(read(*arguments)):
            yield pair
            if number == 0:
                started.release()
                assert go_on.wait(WAIT)

    converting.read_arrays = arrays


def load_without_locks(source: str, cache: str, started: Any, go_on: Any, results: Any) -> None:
    """As on Windows, or on a network file system without locks."""
    sys.modules["fcntl"] = None  # type: ignore[assignment]  # makes its import fail
    wait_while_writing(started, go_on)
    answer(results, lambda: str(locate.model_directory(source, cache=cache)))


def run_command(source: str, destination: str, started: Any, go_on: Any, results: Any) -> None:
    wait_while_writing(started, go_on)
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        answer(results, lambda: (main(["convert", source, destination]), errors.getvalue()))

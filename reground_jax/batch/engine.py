"""Runs units concurrently in one process, so that the device never waits for the host."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from reground_jax.batch.manifest import Entry
from reground_jax.batch.unit import Generator, Stopped, UnitError

# One unit is on the device and one is being written. The others prepare: text encoding queues
# behind the batches on the device, so a unit must request it two turns ahead.
WORKERS = 5
TICK = 0.5  # seconds between progress reports
# This many failures in a row are blamed on the model or the machine, not on the input.
FAILURES = 8


def run_units(
    generator: Generator,
    units: Iterable[int],
    *,
    on_entry: Callable[[Entry], None],
    on_tick: Callable[[], None] = lambda: None,
    on_failure: Callable[[UnitError], None] | None = None,
) -> None:
    """Calls `generate_unit` for each unit, and `on_entry` in this thread as each one finishes.

    Returns early if the generator is stopped: units whose batches are not all on the device yet are
    dropped. If a unit cannot be made, on_failure is called and the others continue; without it, or
    at the last of FAILURES failures in a row, the error is raised. Any other error stops the run
    and is raised.
    """
    remaining = iter(units)
    failed = 0  # in a row
    under_way: set[Future[Entry]] = set()
    with ThreadPoolExecutor(WORKERS, "unit") as pool:
        try:
            while True:
                if not generator.stop.is_set():
                    for unit in itertools.islice(remaining, WORKERS - len(under_way)):
                        under_way.add(pool.submit(generator.generate_unit, unit))
                if not under_way:
                    return
                done, under_way = wait(under_way, TICK, FIRST_COMPLETED)
                for future in done:
                    try:
                        entry = future.result()
                    except Stopped:
                        continue
                    except UnitError as error:
                        failed += 1
                        if on_failure is None or failed == FAILURES:
                            raise
                        on_failure(error)
                    else:
                        failed = 0
                        on_entry(entry)
                on_tick()
        except BaseException:
            generator.stop.set()
            raise


@contextlib.contextmanager
def stopping_on_signals(stop: threading.Event, say: Callable[[str], None]) -> Iterator[list[int]]:
    """The first SIGTERM or SIGINT sets `stop`; a second one has its usual effect.

    Yields the list of signals received.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: object) -> None:
        came.append(number)
        restore()
        stop.set()
        say(f"{signal.Signals(number).name}: finishing what is on the device")

    for number in before:
        signal.signal(number, handle)
    try:
        yield came
    finally:
        restore()

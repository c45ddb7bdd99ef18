"""Processes that tests start: they end with the test, however it ends."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATIENCE = 600  # seconds, for a busy machine

Start = Callable[..., subprocess.Popen]


def with_devices(count: int) -> str:
    """XLA_FLAGS for a program with so many CPU devices, otherwise compiled as the tests are."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"


@contextlib.contextmanager
def starting() -> Iterator[Start]:
    """Yields a function that starts a program, given arguments and environment variables."""
    with contextlib.ExitStack() as stack:

        def start(arguments: list[str], **environment: str) -> subprocess.Popen:
            process = subprocess.Popen(
                arguments, cwd=ROOT, env=os.environ | environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            stack.enter_context(process)  # closes its pipes and waits for it
            stack.callback(_kill, process)
            return process

        yield start


def _kill(process: subprocess.Popen) -> None:
    """With its children: a program that mounts a file system first runs in a shell."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and stderr."""
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Waits until the condition holds, which must happen before the process ends."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        ended = process.poll() is not None
        assert ended or time.monotonic() < limit, "it does not come to what is waited for"
        assert not ended or condition(), finish(process)
        time.sleep(0.02)

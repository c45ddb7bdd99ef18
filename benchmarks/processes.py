"""A process for each side of a comparison, which answers one request at a time.

Requests and replies are JSON, one per line, over stdin and stdout. The first reply says that the
side is loaded and warm.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Process:
    """The process of one side: `ask` sends a request and waits for its reply."""

    def __init__(self, name: str, log: Path, module: str, *arguments: str):
        """module: of Python, run with the arguments. log: a file for what it prints."""
        self.name, self.log = name, log.open("w")
        # Both sides share a GPU, so neither may preallocate its memory.
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.log.close()

    def reply(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.log.flush()
            error = Path(self.log.name).read_text()[-3000:]
            raise RuntimeError(f"the process {self.name!r} failed:\n{error}")
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.reply()


def replying() -> Callable[..., None]:
    """In the process of a side: sends a reply. What libraries print goes to the log from now on."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(**facts: Any) -> None:
        print(json.dumps(facts), file=replies, flush=True)

    return reply


def requests() -> Iterator[dict[str, Any]]:
    """In the process of a side: the requests, as they come."""
    for line in sys.stdin:
        yield json.loads(line)


def say(what: str, facts: Any) -> None:
    """Progress, for people."""
    print(f"{what}: {json.dumps(facts)}", file=sys.stderr, flush=True)

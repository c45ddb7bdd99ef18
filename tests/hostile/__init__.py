"""Malicious files, and a process with limits to read them in.

Each case is a file and the error message that it must cause. `run` has a child process read them
one by one, under limits on CPU time and memory; `problems` lists what went wrong.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
LONGEST = 600  # characters of a message, not counting paths
CANARY = "canary"  # a file that hostile code would make in its working directory
READS = "reads"  # instead of a message: the file looks odd but is harmless


class Case(NamedTuple):
    """A file, and how reading it must end."""

    name: str
    content: bytes | Callable[[Path], object]  # or a function that makes the file
    says: str  # a regular expression that the error's message must match, or READS
    error: str = "ValueError"  # name of the error's class
    opener: str = "open_tensors"


class Limits(NamedTuple):
    seconds: int = 20  # of CPU per file; the slowest takes 2 on a quiet machine
    data: int = 768 * 2**20  # bytes of memory beyond what the libraries take
    wall: int = 600  # seconds for all files, so that one that waits forever ends, too


class Result(NamedTuple):
    """What a child process reports on one file."""

    name: str
    outcome: str  # READS, or the name of the error's class and of those it derives from
    message: str
    canary: bool  # whether code in the file has run


def run(
    cases: list[Case], folder: Path, module: str, limits: Limits | None = None
) -> dict[str, Result]:
    """The result of each case, by name. A case that ended the child is missing, as are later ones.

    The functions that `opener` names are in `module`.
    """
    limits = limits or Limits()
    folder.mkdir()
    for case in cases:
        path = folder / case.name
        if isinstance(case.content, bytes):
            path.write_bytes(case.content)
        else:
            case.content(path)
    work = {
        "module": module,
        "files": [(str(folder / case.name), case.opener) for case in cases],
        "canary": CANARY,
        "limits": limits._asdict(),
    }
    (folder / "work.json").write_text(json.dumps(work))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    with open(folder / "results.jsonl", "w") as results:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.child", str(folder / "work.json")],
            cwd=folder,
            env=environment,
            stdout=results,
        )
        try:
            child.wait(limits.wall)
        except subprocess.TimeoutExpired:
            pass
        finally:
            child.kill()
            child.wait()
    lines = (folder / "results.jsonl").read_text().splitlines()
    found = [Result(*json.loads(line)) for line in lines]
    return {Path(result.name).name: result for result in found}


def problems(cases: list[Case], results: dict[str, Result]) -> list[str]:
    """One line per case that did not end as it should."""
    found = []
    for case in cases:
        result = results.get(case.name)
        if result is None:
            found.append(f"{case.name}: it ended the process, or waited forever")
            break  # the child did not reach the later ones
        wrong = _wrong(case, result)
        if wrong:
            found.append(f"{case.name}: {wrong} ({result.outcome[:200]}: {result.message[:300]})")
    return found


def _wrong(case: Case, result: Result) -> str | None:
    if result.canary:
        return "its code has run"
    if case.says == READS:
        return None if result.outcome == READS else "it should have been read"
    if result.outcome == READS:
        return "it was read"
    if case.error not in result.outcome.split():
        return f"the error is no {case.error}"
    if "\n" in result.message or not result.message.isprintable():
        return "the message is more than a line, or has control characters"
    if len(re.sub(r"/\S*", "", result.message)) > LONGEST:
        return "the message is long"
    if not re.search(case.says, result.message):
        return f"the message does not match {case.says!r}"
    return None

"""Reads the files of a list, one by one, under limits on CPU time and memory.

python -m tests.hostile.child WORK.json     (see `tests.hostile.run`)
"""

import importlib
import json
import math
import os
import resource
import sys
from pathlib import Path


def main(work: dict) -> None:
    module = importlib.import_module(work["module"])
    limits, canary = work["limits"], Path(work["canary"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        data = _data() + limits["data"]
        resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    for path, opener in work["files"]:
        spent = resource.getrusage(resource.RUSAGE_SELF)
        seconds = math.ceil(spent.ru_utime + spent.ru_stime) + limits["seconds"]
        # Past the soft limit, SIGXCPU ends the process, even within a C call.
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        outcome, message = read(getattr(module, opener), path)
        print(json.dumps([path, outcome, message, canary.exists()]), flush=True)
        canary.unlink(missing_ok=True)


def read(opener, path: str) -> tuple[str, str]:
    try:
        opener(path)
    except BaseException as error:  # SystemExit too
        return " ".join(kind.__name__ for kind in type(error).__mro__), str(error)
    return "reads", ""


def _data() -> int:
    """Bytes of private memory now, as RLIMIT_DATA counts them."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    os.nice(5)
    main(json.loads(Path(sys.argv[1]).read_text()))

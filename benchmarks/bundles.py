"""Instructions that the TPU compiler scheduled for one attention call: `static` milliseconds.

A TPU core issues one VLIW bundle per cycle, in order, so bundles times known trip counts is a lower
bound on the cycles: without waits for memory and launches, but with everything that the cost model
(`estimated_cycles`) gets wrong. It is also the only figure for a Pallas kernel, for which there is
no estimate. Bundles come from a dump of the compiler that is not documented; where it does not
write one, there is no static figure.

Each call is compiled in a process of its own, because libtpu reads the dump's options once.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from reground_jax.bench.attention_shapes import Shape

DUMP = "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+((?:[A-Z]{2})?)\s*:\s*(>*)")
EXIT = re.compile(r"scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test")
FILE = re.compile(r"^\d+-(.+)-\d+-final_bundles\.txt$")


def static(chip: str, form: str, shape: Shape) -> dict[str, Any]:
    """Of one attention call, compiled in another process.

    "error" if it does not compile; else "estimated_ms", "static_ms" (None without a dump),
    "temporaries" in bytes and "seconds" of compiling.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "LIBTPU_INIT_ARGS": DUMP.format(folder=folder),
        }
        command = [sys.executable, "-m", "benchmarks.bundles", folder, chip, form, *map(str, shape)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def attention(folder: Path, chip: str, form: str, shape: Shape) -> dict[str, Any]:
    """`static`, in this process."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from reground_jax.bench.aot import compiled
    from reground_jax.bench.chips import CHIPS, tpu_devices
    from reground_jax.networks.attention import attention_for

    device = tpu_devices(CHIPS[chip].topology)[0]
    sharding = SingleDeviceSharding(device)
    q, k, v = (
        jax.ShapeDtypeStruct(
            (shape.branches, length, shape.heads, shape.width), jnp.bfloat16, sharding=sharding
        )
        for length in (shape.queries, shape.keys, shape.keys)
    )
    attend = attention_for("tpu", form)

    def run(q, k, v):
        with jax.default_matmul_precision("highest"):
            return attend(q, k, v)

    made = compiled((jax.jit(run), (q, k, v)))
    clock = CHIPS[chip].clock
    spent, scheduled = 0, 0
    bundles = read(folder)
    for operation, times, _ in made.program.executed():
        spent += times * operation.estimated_cycles
        scheduled += times * bundles.get(operation.name, 0)
    return {
        "estimated_ms": 1e3 * spent / clock,
        "static_ms": 1e3 * scheduled / clock if bundles else None,
        "temporaries": made.temporaries,
        "seconds": made.seconds,
    }


def read(folder: Path) -> dict[str, int]:
    """Cycles of every operation that has code of its own, by name."""
    return {
        found[1]: cycles(path)
        for path in folder.iterdir()
        if (found := FILE.match(path.name)) is not None
    }


def cycles(path: Path) -> int:
    """Bundles of one file, those inside loops times the loops' trip counts.

    What stands behind a condition counts as if it always ran.
    """
    loops: list[dict[str, int]] = []  # depth, trips, first line
    depths: list[int] = []
    with path.open() as file:
        for line in file:
            if (found := BUNDLE.match(line)) is None:
                continue
            depth = len(found[2])
            if found[1] == "LB":
                loops.append({"depth": depth, "trips": 0, "first": len(depths)})
            depths.append(depth)
            if end := EXIT.search(line):
                for loop in reversed(loops):
                    if loop["depth"] == max(depth, 1) and not loop["trips"]:
                        loop["trips"] = int(end[1])
                        break
    total, current = 0, 0
    open_loops: dict[int, int] = {}  # trips of the innermost loop so far, by depth
    for place, depth in enumerate(depths):
        while current < len(loops) and loops[current]["first"] <= place:
            open_loops[loops[current]["depth"]] = loops[current]["trips"] or 1
            current += 1
        times = 1
        for inner in range(1, depth + 1):
            times *= open_loops.get(inner, 1)
        total += times
    return total


if __name__ == "__main__":
    folder, chip, form, *shape = sys.argv[1:]
    print(json.dumps(attention(Path(folder), chip, form, Shape(*map(int, shape)))))

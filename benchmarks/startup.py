"""From process start to the first denoising step, with an empty and a warm compilation cache.

Run as `python -m benchmarks.startup FOLDER OPTIONS`, it is one such process; OPTIONS is JSON.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# "load" reads the weights, which no cache can speed up.
PARTS = ("import", "load", "prepare", "trace", "lower", "compile or read", "first step")


def measure(preset: str, dtype: str, repeats: int) -> dict[str, Any]:
    """Seconds by part for each process: one that compiles, then `repeats` that read the cache."""
    from reground_jax.bench.presets import preset_config, tokenizer_json
    from reground_jax.model import random_params, write_model

    config = preset_config(preset)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        arrays = ((name, array.astype("float16")) for name, array in random_params(config, 0))
        write_model(folder / "model", config, arrays, tokenizer_json(), {})
        options = {"preset": preset, "dtype": dtype}
        processes = [start(folder, options) for _ in range(1 + repeats)]
    return {"preset": preset, "dtype": dtype, "cold": processes[0], "warm": processes[1:]}


def start(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", str(folder)]
        + [json.dumps(options | {"spawned": time.time()})],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if result.returncode:
        raise RuntimeError(f"the process failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def show(record: dict[str, Any]) -> str:
    from reground_jax.bench.harness import table

    head = ["before the step, without load", "after it", "hits", "misses"]
    rows = [["process", *PARTS, *head]]
    names = ["empty cache", *("warm cache" for _ in record["warm"])]
    for name, facts in zip(names, [record["cold"], *record["warm"]], strict=True):
        parts = facts["seconds"]
        row = [f"{parts[part]:.2f}" for part in PARTS]
        after = sum(parts.values()) - parts["load"]
        before = after - parts["first step"]
        ends = [f"{before:.2f}", f"{after:.2f}"]
        rows.append([name, *row, *ends, str(facts["hits"]), str(facts["misses"])])
    return table(rows)


def main(folder: Path, options: dict[str, Any]) -> None:
    """Imports everything here, inside the measured time."""
    seconds: dict[str, float] = {}
    last = options["spawned"]  # by the parent, so that the interpreter's own start counts

    def done(part: str) -> None:
        nonlocal last
        now = time.time()
        seconds[part], last = now - last, now

    from reground_jax import Pipeline

    done("import")
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))

    from reground_jax.bench.cases import Denoising, Work
    from reground_jax.settings import Settings

    pipe = Pipeline.load(folder / "model", dtype=options["dtype"])
    done("load")
    # DDIM, because PLMS evaluates the U-Net twice in its first step.
    denoising = Denoising.of(pipe, Work(Settings(solver="ddim")))
    program, arguments = denoising.program()
    jax.block_until_ready(arguments)
    done("prepare")
    traced = program.trace(*arguments)
    done("trace")
    lowered = traced.lower()
    done("lower")
    compiled = lowered.compile()
    done("compile or read")
    jax.block_until_ready(compiled(*arguments))
    done("first step")
    prefix = "/jax/compilation_cache/cache_"
    counts = {kind: events.count(prefix + kind) for kind in ("hits", "misses")}
    print(json.dumps({"seconds": seconds, **counts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))

"""The same batch on 1, 2, 4 and 8 devices: equal images, no collectives, and the time of each.

    python -m benchmarks.scaling OPTIONS      is the process that measures; OPTIONS: JSON

Without enough real devices, the CPU is split into virtual ones. These prove that devices need
nothing from each other, but share the cores of one machine, so their times say nothing about speed.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COUNTS = (1, 2, 4, 8)
COLLECTIVES = r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\b"


def measure(preset: str, dtype: str, steps: int, repeats: int) -> dict[str, Any]:
    options = {"preset": preset, "dtype": dtype, "steps": steps, "repeats": repeats}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", json.dumps(options)],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags.strip()}, capture_output=True, text=True,
    )  # fmt: skip
    if result.returncode:
        raise RuntimeError(f"the process failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def show(record: dict[str, Any]) -> str:
    from reground_jax.bench.harness import table

    rows = [["devices", "images each", "median s", "images/s", "collectives", "differs by"]]
    for row in record["rows"]:
        result = row["result"]
        numbers = [f"{result['median_s']:.4f}", f"{result['images_per_s']:.3f}"]
        collectives = ", ".join(row["collectives"]) or "none"
        each = str(COUNTS[-1] // row["devices"])
        rows.append([str(row["devices"]), each, *numbers, collectives, f"{row['difference']:.1e}"])
    return table(rows)


def main(options: dict[str, Any]) -> None:
    import jax
    import numpy as np

    from reground_jax import Pipeline
    from reground_jax.bench.cases import Denoising, Work, generate
    from reground_jax.bench.harness import environment
    from reground_jax.bench.harness import measure as time_cases
    from reground_jax.bench.presets import layouts, random_model
    from reground_jax.settings import Settings

    model, batch = random_model(options["preset"]), COUNTS[-1]
    settings = Settings(
        num_steps=options["steps"], solver="ddim", gamma=1.0, dtype=options["dtype"]
    )
    counts = [count for count in COUNTS if count <= jax.device_count()]
    rows, cases, images = [], [], []
    for count in counts:
        pipe = Pipeline.from_model(model, devices=jax.devices()[:count], dtype=options["dtype"])
        work = Work(settings, batch)
        program, arguments = Denoising.of(pipe, work).program()
        text = program.lower(*arguments).compile().as_text()
        images.append(
            pipe(
                layouts(batch), num_steps=settings.num_steps, solver="ddim", output="numpy",
                batch_size=batch // count,
            )
        )  # fmt: skip
        cases += generate(pipe, work)
        rows.append(
            {
                "devices": count,
                "collectives": sorted(set(re.findall(COLLECTIVES, text))),
                "difference": float(np.abs(images[-1] - images[0]).max()),
            }
        )
    results = time_cases(cases, repeats=options["repeats"])
    rows = [row | {"result": result.to_json({})} for row, result in zip(rows, results, strict=True)]
    print(json.dumps({**options, "environment": environment(jax.devices()), "rows": rows}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

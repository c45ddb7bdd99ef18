"""`make demo`: one layout, drawn by the built-in model with every method."""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from reground_jax.cli import main as command

# The traffic light has no box: only the prompt mentions it.
PROMPT = "a dog, a car and a traffic light on the grass"
BOXES = ["a dog@0.125,0.125,0.5,0.5", "a car@0.375,0.625,0.875,0.9375"]


def run(out: Path) -> int:
    boxes = [part for box in BOXES for part in ("--box", box)]
    picture = out / "compare.png"
    for arguments in (
        ["info", "emoji"],
        ["generate", PROMPT, *boxes, "--out", str(out / "image.png")],
        ["compare", PROMPT, *boxes, "--seeds", "0,1,2", "--out", str(picture)],
    ):
        print("$ reground-jax", shlex.join(arguments), flush=True)
        if code := command(arguments):
            return code
    print(f"\nThe comparison image is {picture.resolve()}")
    if shutil.which("reground-jax") is None:
        activate = Path(sys.prefix, "bin", "activate")
        print(f"To run `reground-jax` yourself: source {activate}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    raise SystemExit(run(parser.parse_args().out))

"""`make demo`: one layout by the model that comes with the package, under every method."""

import argparse
import shlex
from pathlib import Path

from reground_jax.cli import main as command

PROMPT = "a cat and a pizza on a beach at night"
BOXES = ["a cat@0.1,0.4,0.45,0.9", "a pizza@0.55,0.5,0.9,0.85"]


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
    print(f"\nThe comparison picture is {picture.resolve()}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    raise SystemExit(run(parser.parse_args().out))

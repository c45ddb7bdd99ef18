"""`make demo`: one layout by the model that comes with the package, under every method."""

import argparse
import shlex
from pathlib import Path

from reground_jax.cli import main as command

PROMPT = "a vase, an airplane, a giraffe and a green traffic light on a striped background"
BOXES = [
    "a vase@0.25,0.25,0.55,0.75",
    "an airplane@0.62,0.12,1,0.5",
    "a giraffe@0.62,0.62,0.9,1",
    "a traffic light@0,0.25,0.2,0.75",
]
LOOK = ["--guidance-scale", "4", "--solver", "dpmpp_2m", "--steps", "20"]  # what suits this model


def run(out: Path) -> int:
    boxes = [part for box in BOXES for part in ("--box", box)]
    picture = out / "compare.png"
    for arguments in (
        ["info", "emoji"],
        ["generate", PROMPT, *boxes, *LOOK, "--out", str(out / "image.png")],
        ["compare", PROMPT, *boxes, *LOOK, "--seeds", "0,1,2", "--out", str(picture)],
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

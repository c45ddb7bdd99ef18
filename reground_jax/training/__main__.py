"""`python -m reground_jax.training STAGE --config FILE --out DIR [--from DIR] [--minutes M]`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all steps are done, 2 for errors, 3 when it stopped before (run it again to go on)."""
    parser = argparse.ArgumentParser(
        prog="python -m reground_jax.training",
        description="Train one stage. Stopped or killed, the same command goes on where it was.",
    )
    parser.add_argument("stage", choices=("autoencoder", "text_to_image", "grounding", "decoder"))
    parser.add_argument("--config", required=True, help="JSON file of the stage")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--from", dest="base", type=Path, help="model directory to start from")
    parser.add_argument("--artwork", type=Path, help="artwork.npz of the emoji world")
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this long")
    given = parser.parse_args(arguments)
    from reground_jax.training.config import StageConfig
    from reground_jax.training.stages import STAGES, open_stage

    try:
        config = StageConfig.load(given.config)
        if given.artwork is not None:
            source = config.source | {"artwork": str(given.artwork.absolute())}
            config = dataclasses.replace(config, source=source)
        stage = open_stage(given.stage, config, given.out, base=given.base)
        done = STAGES[given.stage](stage, minutes=given.minutes)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not done:
        print(f"stopped before the end; run the same command to go on from {given.out}/state")
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())

"""`reground-jax train`: one stage of training, from examples to a model directory."""

import argparse
import dataclasses
from pathlib import Path

from reground_jax.cli.progress import say
from reground_jax.training.config import STAGE_NAMES

STOPPED = 3  # exit code: there are steps left
ON_AGAIN = "stopped before the end; the same command goes on from {out}/state"
EXAMPLES = """\
example: the four commands that make a grounded model (`make train` runs them all)
  python -m reground_jax.emoji.artwork --out art
  reground-jax train autoencoder --config C/autoencoder.json --artwork art/artwork.npz --out ae
  reground-jax train text_to_image --config C/text_to_image.json --artwork art/artwork.npz \\
      --from ae/model --out t2i
  reground-jax train grounding --config C/grounding_parallel.json --artwork art/artwork.npz \\
      --from t2i/model --out grounded
  where C is reground_jax/training/configs/emoji64. The config says what the data are: the emoji
  world, COCO instances and captions, or JSONL with images. Real GLIGEN training needs the last
  command alone, with --from a model that `reground-jax convert` made of Stable Diffusion.

Stopped by --minutes, SIGTERM, Ctrl-C or a crash, the same command goes on where it was, with the
same numbers; under another config or other data it refuses, and says what differs. A later end, or
another rhythm of logs, samples and checkpoints, may be given at any time. Exit code 3: stopped with
steps left; 1: the loss is no number any more, and the last good checkpoint is kept."""


def add(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        help="train one stage: autoencoder, text_to_image, grounding or decoder",
        description="Trains one stage, shows how it goes, and writes OUT/model when it is done.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("stage", choices=STAGE_NAMES)
    parser.add_argument("--config", required=True, metavar="FILE", help="JSON file of the stage")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="folder of the run: state/, samples/, log.jsonl and, at the end, model/",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="base", type=Path, metavar="DIR", help="model directory to start from"
    )
    parser.add_argument(
        "--fusers", type=Path, metavar="DIR",
        help="grounding: go on with the fusers of this model instead of fresh ones",
    )  # fmt: skip
    parser.add_argument(
        "--artwork", type=Path, metavar="FILE", help="artwork.npz of the emoji world"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="stop with a checkpoint after this long"
    )
    parser.add_argument(
        "--until", type=int, metavar="STEP",
        help="end with this step and write the model, though the config's learning rates are made "
        "for more",
    )  # fmt: skip
    parser.add_argument(
        "--accept-changes", action="store_true",
        help="go on in --out though config or data are others; the model's record will say so",
    )  # fmt: skip
    return parser


def run(arguments: argparse.Namespace) -> int:
    try:
        from reground_jax.training.config import StageConfig
        from reground_jax.training.opening import open_stage
        from reground_jax.training.stages import STAGES
        from reground_jax.training.trainer import Diverged
    except ModuleNotFoundError as error:
        raise ValueError(
            f"training needs {error.name}: pip install 'reground-jax[train]'"
        ) from error

    minutes = arguments.minutes
    if minutes is not None and not minutes >= 0:
        raise ValueError(f"--minutes is {minutes}: give a number of at least 0")
    config = StageConfig.load(arguments.config)
    if arguments.artwork is not None:
        source = config.source | {"artwork": str(arguments.artwork.absolute())}
        config = dataclasses.replace(config, source=source)
    if arguments.until is not None:
        recipe = dataclasses.replace(config.recipe, last_step=arguments.until)
        config = dataclasses.replace(config, recipe=recipe)
    stage = open_stage(
        arguments.stage, config, arguments.out, base=arguments.base, fusers=arguments.fusers,
        accept_changes=arguments.accept_changes,
    )  # fmt: skip
    try:
        if STAGES[arguments.stage](stage, minutes=minutes):
            return 0
    except Diverged as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say(ON_AGAIN.format(out=arguments.out))
        raise
    say(ON_AGAIN.format(out=arguments.out))
    return STOPPED

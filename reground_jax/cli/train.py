"""`reground-jax train`: one stage of training, from examples to a model directory."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import hint, say
from reground_jax.training.config import STAGE_NAMES

PRESET = "sd14"  # whose shape a dry run has without --from
STOPPED = 3  # exit code: there are steps left
RESUME = "stopped before the last step; run the same command again to continue from {out}/state"
EXAMPLES = """\
example: the four commands that make a grounded model (`make train` runs them all)
  python -m reground_jax.emoji.artwork --out art
  reground-jax train autoencoder --config C/autoencoder.json --artwork art/artwork.npz --out ae
  reground-jax train text_to_image --config C/text_to_image.json --artwork art/artwork.npz \\
      --from ae/model --out t2i
  reground-jax train grounding --config C/grounding_parallel.json --artwork art/artwork.npz \\
      --from t2i/model --out grounded
  where C is reground_jax/training/configs/emoji64. The config names the data: the emoji world, COCO
  instances and captions, or JSONL with images. Training GLIGEN on Stable Diffusion takes only the
  last command, with --from a model that `reground-jax convert` made; whether it fits, and how long
  it would take, is known without data or weights:
  reground-jax train grounding --config D/grounding_parallel.json --dry-run --topology v5e:4x4
  where D is reground_jax/training/configs/gligen_sd14, GLIGEN's own recipe.

If a run stops because of --minutes, SIGTERM, Ctrl-C or a crash, run the same command again to
resume; the numbers come out the same. With a different config or different data it refuses and says
what differs. A later last step, and other intervals of logs, samples and checkpoints, are allowed
at any time. Exit codes: 3 if steps are left; 1 if the loss became NaN or infinite, in which case
the last good checkpoint is kept."""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "train",
        help="train one stage: autoencoder, text_to_image, grounding or decoder",
        description="Trains one stage, reports its progress, and writes OUT/model at the end.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "stage", choices=STAGE_NAMES,
        help="what to train: the autoencoder of the latent space; the text-to-image U-Net; the "
        "layers that read boxes or a semantic map, on a frozen U-Net; or the decoder alone",
    )  # fmt: skip
    parser.add_argument(
        "--config", required=True, metavar="FILE",
        help="JSON file with data, model, loss and recipe (learning rate, steps and so on)",
    )  # fmt: skip
    group = parser.group("model")
    group.add_argument(
        "--from", dest="base", type=Path, metavar="DIR", help="model directory to start from"
    )
    group.add_argument(
        "--fusers", type=Path, metavar="DIR",
        help="grounding: start from the fusers (layers that read the boxes) of this model",
    )  # fmt: skip
    parser.add_argument(
        "--artwork", type=Path, metavar="FILE", help="artwork.npz of the emoji world"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="stop after this long, with a checkpoint"
    )
    parser.add_argument(
        "--until", type=int, metavar="STEP",
        help="end at this step and write the model, even if the config's learning rate schedule is "
        "longer",
    )  # fmt: skip
    parser.add_argument(
        "--accept-changes", action="store_true",
        help="resume in --out even if the config or the data changed; the model's record will say "
        "so",
    )  # fmt: skip
    add_dry_run(parser)
    parser.group("output").add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder of the run: state/, samples/, log.jsonl and, at the end, model/; only "
        "--dry-run does without",
    )  # fmt: skip
    parser.alias("--out", "-o", "--output")
    return parser


def add_dry_run(parser: Parser) -> None:
    group = parser.group("dry run")
    group.add_argument(
        "--dry-run", action="store_true",
        help="only compile the training step, without data or weights, and print its memory per "
        "device, FLOP, collectives, and how long the recipe would take on named chips",
    )  # fmt: skip
    group.add_argument(
        "--topology", metavar="T",
        help="compile for these TPUs instead of this machine's devices, such as v5e:4x4; needs "
        "libtpu, but no TPU",
    )  # fmt: skip
    group.add_argument(
        "--preset", metavar="NAME",
        help="without --from: the shape of the model to start from; tiny, emoji or sd14 (default: "
        f"{PRESET})",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    hint("loading ...")
    try:
        from reground_jax.training.config import StageConfig
        from reground_jax.training.opening import open_stage
        from reground_jax.training.stages import STAGES
        from reground_jax.training.trainer import Diverged
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is missing, which training needs: pip install 'reground-jax[train]'"
        ) from error

    minutes = arguments.minutes
    if minutes is not None and not minutes >= 0:
        raise ValueError(f"--minutes is {minutes}: give a number of at least 0")
    check_mode(arguments)
    config = StageConfig.load(arguments.config)
    if arguments.artwork is not None:
        source = config.source | {"artwork": str(arguments.artwork.absolute())}
        config = dataclasses.replace(config, source=source)
    if arguments.until is not None:
        recipe = dataclasses.replace(config.recipe, last_step=arguments.until)
        config = dataclasses.replace(config, recipe=recipe)
    if arguments.dry_run:
        return compile_only(arguments, config)
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
        say(RESUME.format(out=arguments.out))
        raise
    say(RESUME.format(out=arguments.out))
    return STOPPED


def check_mode(arguments: argparse.Namespace) -> None:
    """Raises ValueError for options that have no effect together, and for a run without --out."""
    if not arguments.dry_run:
        for name in ("topology", "preset"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} is only for --dry-run: add it, or remove --{name}")
        if arguments.out is None:
            raise ValueError("--out is missing: give the folder of the run")
    if arguments.preset is not None and arguments.base is not None:
        raise ValueError("--preset is the shape of a model, and so is --from: give only one")


def compile_only(arguments: argparse.Namespace, config: Any) -> int:
    """`--dry-run`: reads the config and, with --from, that of a model; no data and no arrays."""
    import jax

    from reground_jax.bench.chips import CHIPS, chip_of, tpu_devices
    from reground_jax.bench.presets import preset_config
    from reground_jax.storage.description import read_description
    from reground_jax.training.dry_run import dry_run, report

    if arguments.base is not None:
        base = read_description(arguments.base).config
    else:
        base = preset_config(arguments.preset or PRESET)
    devices, chip = tuple(jax.local_devices()) if arguments.topology is None else (), None
    if arguments.topology is not None:
        devices, chip = tpu_devices(arguments.topology), CHIPS[chip_of(arguments.topology)]
    hint("compiling ...")
    print(report(dry_run(arguments.stage, config, base, devices, chip)))
    return 0

"""`reground-jax info`: what a model directory holds, without running any of it."""

import argparse
import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reground_jax.basics.home import expand_home
from reground_jax.basics.options import options
from reground_jax.cli.options import shown_default
from reground_jax.cli.parser import Parser
from reground_jax.cli.sampling import DEFAULT_MODEL
from reground_jax.layout_kinds import TAKES
from reground_jax.settings import Settings

if TYPE_CHECKING:
    from reground_jax.config import ModelConfig

MAX_NAMED = 5  # arrays with NaN to list

EXAMPLES = """\
examples:
  reground-jax info
      shows the model that comes with the package
  reground-jax info my-model --check
      reads every number: against the SHA-256 checksum, and for NaN"""
OPTIONS = {  # of `generate`, by field of a layout
    "boxes": "--box (a phrase and its place)",
    "images": "--image (a picture and its place)",
    "keypoints": "--keypoints (a file)",
    "map": "--map (a picture)",
}


def add(commands) -> Parser:
    parser = commands.add_parser(
        "info",
        help="show a model's size, configuration and checksum",
        description="Shows what a converted model is: its size, recommended settings, "
        "configuration, gates and checksum.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "checkpoint", nargs="?", metavar="MODEL",
        help="a model directory, or emoji, the model that comes with the package (default: emoji)",
    )  # fmt: skip
    parser.add_argument("--model", metavar="MODEL", help="the same, as in other commands")
    parser.alias("--model", "-m", "--checkpoint")
    parser.add_argument(
        "--check", action="store_true",
        help="read all of it, and exit with code 1 if an array holds NaN or infinity",
    )  # fmt: skip
    return parser


def run(arguments: argparse.Namespace) -> int:
    if arguments.checkpoint and arguments.model:
        raise ValueError(
            f"two models are given, {arguments.checkpoint} and {arguments.model}: name only one"
        )
    directory = own_directory(arguments.checkpoint or arguments.model or DEFAULT_MODEL)
    print(describe(directory))
    return checked(directory) if arguments.check else 0


def checked(directory: Path) -> int:
    """Reads every array and prints what it found; returns the exit code. Raises CheckpointError."""
    from reground_jax.model import check_model

    nonfinite = check_model(directory)
    print(f"  checked       {nonfinite_line(nonfinite) or 'every array is as it was written'}")
    return 1 if nonfinite else 0


def nonfinite_line(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"NaN or infinity in {', '.join(names[:MAX_NAMED])}{more}: convert a sound checkpoint"


def own_directory(name: str) -> Path:
    """The path of a converted model. Raises ValueError if it is anything else; converts nothing."""
    from reground_jax.convert.locate import built_in
    from reground_jax.convert.sources import detect

    path = expand_home(name)
    if (found := built_in(name)) is not None:
        return found
    if not path.exists():
        raise ValueError(
            f"{name} does not exist: give a directory that `reground-jax convert` made, or the "
            "name of a built-in model"
        )
    kind = detect(path).kind
    if kind != "ours":
        raise ValueError(
            f"{name} is a checkpoint that is not converted yet ({kind}): run "
            f"`reground-jax convert {name} DIR`, then `reground-jax info DIR`"
        )
    return path.absolute()


def describe(directory: Path) -> str:
    """The report on a model directory, as text. Raises CheckpointError if it is damaged."""
    from reground_jax.model import read_description

    description = read_description(directory)
    config, info = description.config, description.info
    gates, counts, base = info["gates"], info["parameters"], description.base
    suits = recommended_line(description.recommended)
    total = sum(counts.values()) - counts["grounding"]
    origin = str(info.get("source", "unknown"))
    if "format" in info:
        origin += f" ({info['format']})"
    for name in ("adapter", "clip", "projection", "first_conv"):
        if name in info:
            origin += f" with {name.replace('_', ' ')} {info[name]}"
    lines = [
        str(directory),
        f"  source        {origin}",
        *(f"  lora          {lora_line(record)}" for record in info.get("loras", [])),
        *([f"  base          {base} (has the other arrays)"] if base else []),
        f"  kind          {kind_of(config)}, images of {config.side}x{config.side}",
        *inputs_of(config),
        *(f"  {name:<13} {count}" for name, count in count_parts(counts).items()),
        f"  size          {size_of(info['bytes'])}, {total:,} parameters",
        f"  dtype         {info['dtype']}",
        f"  checksum      {description.checksum}",
        f"  of its arrays {info['checksum']}",
        *([f"  recommended   {suits}"] if suits else []),
        f"  gates         {len(gates)} pairs, one per fuser (a layer that reads the boxes):",
        "                tanh of the gates of its attention and its feed-forward layer",
        *(f"    {block:<34} {a:+.4f} {d:+.4f}" for block, (a, d) in gates.items()),
        "  config",
        *config_lines(config),
    ]
    if nonfinite := info.get("nonfinite"):
        lines.append(f"  WARNING       {nonfinite_line(nonfinite)}")
    return "\n".join(map(printable, lines))


def lora_line(record: dict[str, Any]) -> str:
    """A LoRA, its scales, and the checksum of its file."""
    unet, text = record["scales"]
    scale = f"{unet:g}" if unet == text else f"{unet:g}, of the text encoder {text:g}"
    return f"{record['path']} at {scale} (SHA-256 {record['sha256']})"


def recommended_line(recommended: dict[str, Any]) -> str:
    """The model's recommended settings, as command-line options."""
    named = options(Settings)
    words = [
        f"{named[field].name} {shown_default(_tuple(value), '')}"
        for field, value in recommended.items()
        if value is not None
    ]
    return " ".join(words)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def size_of(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def printable(line: str) -> str:
    """Replaces control characters, because texts in `info` are untrusted."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def kind_of(config: "ModelConfig") -> str:
    """Such as "GLIGEN, grounded by a depth map (depth)"."""
    unet = config.unet
    if unet.grounding is None:
        return "plain Stable Diffusion, without fusers"
    task = "GLIGEN inpainting" if unet.inpainting else "GLIGEN"
    return f"{task}, grounded by {TAKES[unet.grounding].words} ({unet.grounding})"


def inputs_of(config: "ModelConfig") -> list[str]:
    """The options of `generate`, and fields of a layout, that the model takes; and its limits."""
    unet = config.unet
    if unet.grounding is None:
        return []
    words = [OPTIONS[field] for field in TAKES[unet.grounding].fields if field in OPTIONS]
    words += ["--source (a picture, whose boxes are filled)"] if unet.inpainting else []
    lines = [f"  takes         {', '.join(words)}"]
    if unet.map is not None and not unet.first_conv:
        lines.append(
            "                only with gamma 1, since it was converted without --first-conv"
        )
    return lines


def count_parts(counts: dict[str, int]) -> dict[str, str]:
    """Parameters by network, and how many of the U-Net's are GLIGEN's."""
    texts = {name: f"{count / 1e6:.2f} M parameters" for name, count in counts.items()}
    grounding = counts["grounding"] / 1e6
    texts["unet"] += f", {grounding:.2f} M of them for grounding (fusers and position net)"
    del texts["grounding"]
    return texts


def config_lines(config: "ModelConfig") -> Iterator[str]:
    """Every field that is set, wrapped for a terminal."""
    for part, value in config.parts().items():
        fields = dataclasses.asdict(value)
        text = ", ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
        yield from textwrap.wrap(
            f"{part}: {text}", 96, initial_indent=4 * " ", subsequent_indent=8 * " "
        )

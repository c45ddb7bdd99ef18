"""`reground-jax info`: what a model directory holds, without running anything of it."""

import argparse
import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reground_jax.config import ModelConfig

EXAMPLES = """\
example:
  reground-jax info my-model"""


def add(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "info",
        help="say what a converted model is",
        description="Says what a converted model is: sizes, configuration, gates, checksum.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", nargs="?", metavar="CHECKPOINT",
        help="a model directory, or emoji, the model that comes with the package",
    )  # fmt: skip
    parser.add_argument("--model", metavar="CHECKPOINT", help="the same, as in other commands")
    return parser


def run(arguments: argparse.Namespace) -> int:
    name = arguments.checkpoint or arguments.model
    if name is None:
        raise ValueError("no checkpoint is given: name a model directory, `reground-jax info DIR`")
    print(describe(own_directory(name)))
    return 0


def own_directory(name: str) -> Path:
    """The path, if it is a model directory of ours. Raises ValueError; converts nothing."""
    from reground_jax.convert.locate import built_in
    from reground_jax.convert.sources import detect

    path = Path(name).expanduser()
    if (found := built_in(name)) is not None:
        return found
    if not path.exists():
        raise ValueError(f"{name} does not exist: give a directory that `convert` made")
    kind = detect(path).kind
    if kind != "ours":
        raise ValueError(
            f"{name} is a checkpoint that is not converted yet ({kind}): run "
            f"`reground-jax convert {name} DIR`, then `reground-jax info DIR`"
        )
    return path.absolute()


def describe(directory: Path) -> str:
    """The report of a model directory, in lines. Raises CheckpointError if it is damaged."""
    from reground_jax.model import read_description

    config, info, *_ = read_description(directory)
    gates, counts = info["gates"], info["parameters"]
    total = sum(counts.values()) - counts["grounding"]
    origin = str(info.get("source", "unknown"))
    if "format" in info:
        origin += f" ({info['format']})"
    if "adapter" in info:
        origin += f" with adapter {info['adapter']}"
    side = config.unet.sample_size * config.vae.downsampling
    lines = [
        str(directory),
        f"  source        {origin}",
        f"  kind          {kind_of(config)}, images of {side}x{side}",
        *(f"  {name:<13} {count}" for name, count in count_parts(counts).items()),
        f"  size          {info['bytes'] / 1e9:.2f} GB, {total:,} parameters",
        f"  dtype         {info['dtype']}",
        f"  checksum      {info['checksum']}",
        f"  gates         {len(gates)} pairs: tanh of a fuser's attention and feed-forward gate",
        *(f"    {block:<34} {a:+.4f} {d:+.4f}" for block, (a, d) in gates.items()),
        "  config",
        *config_lines(config),
    ]
    return "\n".join(lines)


def kind_of(config: "ModelConfig") -> str:
    if not config.unet.grounded:
        return "plain Stable Diffusion, without fusers"
    return "GLIGEN inpainting" if config.unet.is_inpainting else "GLIGEN text-box generation"


def count_parts(counts: dict[str, int]) -> dict[str, str]:
    """Parameters by network, and how many of the U-Net's are GLIGEN's."""
    texts = {name: f"{count / 1e6:.2f} M parameters" for name, count in counts.items()}
    texts["unet"] += f", {counts['grounding'] / 1e6:.2f} M of them in fusers and position net"
    del texts["grounding"]
    return texts


def config_lines(config: "ModelConfig") -> Iterator[str]:
    """Every field that is set, wrapped to a terminal."""
    for part in dataclasses.fields(config):
        fields = dataclasses.asdict(getattr(config, part.name))
        text = ", ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
        yield textwrap.fill(
            f"{part.name}: {text}", 96, initial_indent=4 * " ", subsequent_indent=8 * " "
        )

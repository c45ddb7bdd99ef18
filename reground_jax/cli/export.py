"""`reground-jax export`: a model in PyTorch's formats, to use it elsewhere."""

import argparse

from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import hint

FORMS = ("diffusers", "adapter", "gligen")  # also in `convert.export`, which imports JAX
EXAMPLES = """\
examples:
  reground-jax export my-model my-model-diffusers --form diffusers
      a folder for StableDiffusionGLIGENPipeline.from_pretrained
  reground-jax export my-model fusers.safetensors --form adapter --dtype float16
      fusers and position net alone, for ComfyUI and `reground-jax convert --adapter`
  reground-jax export my-model my-model-gligen --form gligen
      a checkpoint for GLIGEN's own code (needs torch)"""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "export",
        help="write a model in the formats of diffusers, ComfyUI or GLIGEN",
        description="Writes a model in a format of PyTorch's programs, every number as it is.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a model directory, the name of a built-in model or a Hub id"
    )
    parser.add_argument("destination", metavar="DST", help="the folder or file to write")
    parser.add_argument("--form", required=True, choices=FORMS, help="the format")
    parser.add_argument(
        "--dtype", metavar="NAME",
        help="number format to store: float32, float16 or bfloat16 (default: the model's)",
    )  # fmt: skip
    return parser


def run(arguments: argparse.Namespace) -> int:
    hint(f"loading {arguments.model} ...")

    from reground_jax.basics.home import expand_home
    from reground_jax.convert.export import export
    from reground_jax.convert.locate import model_directory

    destination = expand_home(arguments.destination).absolute()
    files = export(
        model_directory(arguments.model), destination, arguments.form, dtype=arguments.dtype
    )
    for file in files:
        print(f"  {file.stat().st_size / 1e6:8.1f} MB  {file}")
    return 0

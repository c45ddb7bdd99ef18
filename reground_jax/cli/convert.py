"""`reground-jax convert`: a checkpoint in any common format, to a model directory."""

import argparse
import importlib.util
import math
from pathlib import Path
from typing import Any

from reground_jax.basics.home import expand_home
from reground_jax.cli.info import describe
from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import Bar, hint

VERIFIERS = ("torch", "diffusers", "transformers")
EXAMPLES = """\
examples:
  reground-jax convert masterful/gligen-1-4-generation-text-box my-model
      from the Hugging Face Hub; a diffusers folder on this machine works the same way
  reground-jax convert gligen/diffusion_pytorch_model.bin my-model
      the original GLIGEN file; code inside it is never run
  reground-jax convert sd-v1-4/ my-model --adapter gligen_sd14_textbox_pruned.safetensors
      Stable Diffusion 1.x with GLIGEN's layers added
  reground-jax convert sd-v1-4/ my-model --adapter gligen.safetensors --lora style.safetensors@0.8
      a LoRA is added to the weights at a scale; also to those of a model made before:
  reground-jax convert my-model my-style --lora style.safetensors@0.8,0.5"""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "convert",
        help="make a model from a GLIGEN checkpoint in PyTorch's formats",
        description="Converts a PyTorch checkpoint, for which PyTorch is not needed, and shows "
        "what it made.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "source", metavar="SOURCE",
        help="a diffusers folder, a checkpoint file, or a Hub id; with --lora also a model",
    )  # fmt: skip
    parser.add_argument("destination", metavar="DIR", help="the model directory to make")
    _add_weights(parser)
    parser.add_argument(
        "--prediction", choices=("epsilon", "v_prediction"),
        help="what the U-Net of a single file predicts: Stable Diffusion 2.x files do not say",
    )  # fmt: skip
    parser.add_argument(
        "--clip-skip", type=int, default=0, metavar="N",
        help="how many of the text encoder's last layers prompts skip, as in diffusers: 1 for "
        "models that say 2 (other programs count from 1)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", metavar="NAME",
        help="number format to store: float32, float16 or bfloat16 (default: the source's)",
    )  # fmt: skip
    parser.add_argument(
        "--variant", metavar="NAME", help="which files of a diffusers folder, such as fp16"
    )
    parser.add_argument(
        "--verify", action="store_true",
        help="afterwards compare every network with PyTorch's on random inputs, and exit with code "
        "1 if one differs by more than rounding (needs pip install 'reground-jax[verify]')",
    )  # fmt: skip
    return parser


def _add_weights(parser: Parser) -> None:
    """The options that name other files than the source."""
    parser.add_argument(
        "--adapter", metavar="FILE",
        help="a file of GLIGEN's layers alone, to add to a base that has none",
    )  # fmt: skip
    parser.add_argument(
        "--vae", metavar="FOLDER_OR_FILE",
        help="another autoencoder than the source's, or one for a source that has none: a folder, "
        "a file or a Hub id such as stabilityai/sd-vae-ft-mse",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", metavar="FOLDER_OR_ID",
        help="for files that have none: a folder, a merges file (bpe_simple_vocab_16e6.txt.gz) or "
        "a Hub id (default: openai/clip-vit-large-patch14)",
    )  # fmt: skip
    parser.add_argument(
        "--clip", metavar="FOLDER_OR_ID",
        help="for models that read reference images: CLIP's image encoder, as transformers stores "
        "it (default: the source's, or openai/clip-vit-large-patch14)",
    )  # fmt: skip
    parser.add_argument(
        "--projection", metavar="FILE",
        help="for the same models: GLIGEN's file projection_matrix (default: the source's "
        "image_project, or the text projection of --clip, which is the same matrix)",
    )  # fmt: skip
    parser.add_argument(
        "--first-conv", metavar="FILE",
        help="for models that read a map: GLIGEN's file SD_input_conv_weight_bias.pth, or any "
        "Stable Diffusion 1.4; without it the model only generates with gamma 1",
    )  # fmt: skip
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE@SCALE",
        help="a LoRA or LoCon (of kohya, LyCORIS, diffusers or peft; a file, a folder of peft's or "
        "a Hub id) to add to the weights; FILE@0.8,0.5 scales the U-Net by 0.8 and the text "
        "encoder by 0.5, FILE alone is FILE@1. May be repeated. If SOURCE is a model directory, "
        "DIR holds only what differs from it, and needs it where it is (with --dtype: everything)",
    )  # fmt: skip
    parser.add_argument(
        "--embedding", action="append", default=[], metavar="FILE",
        help="an embedding of textual inversion, whose token prompts and phrases can then use; may "
        "be repeated",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    if arguments.verify:  # fail before minutes of work
        check_verifiers()
        check_verifiable(arguments.source)
    weights = weights_of(arguments)
    hint(f"loading {arguments.source} ...")

    from reground_jax.convert.conversion import convert

    destination = expand_home(arguments.destination).absolute()

    with Bar("converting", unit=" parameters", unit_scale=True) as bar:
        convert(
            arguments.source,
            destination,
            tokenizer=arguments.tokenizer,
            prediction=arguments.prediction,
            clip_skip=arguments.clip_skip,
            dtype=arguments.dtype,
            progress=bar.show,
            **weights,
        )
    print(describe(destination))
    return verified(arguments, destination) if arguments.verify else 0


def weights_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Which weights a conversion, and its verification, read besides the source's."""
    names = ("adapter", "vae", "clip", "projection", "first_conv", "variant")
    loras = [lora_of(text) for text in arguments.lora]
    named: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    return named | {"loras": loras, "embeddings": arguments.embedding}


def lora_of(text: str) -> tuple[str, float | tuple[float, float]]:
    """The path or Hub id, and the scales, in FILE@SCALE. Raises ValueError for a bad scale.

    An @ before anything but numbers belongs to the path, or to the Hub id (owner/name@revision).
    """
    path, at, scale = text.rpartition("@")
    if not at:
        return text, 1.0
    try:
        first, *second = [float(number) for number in scale.split(",")]
    except ValueError:
        if expand_home(text).exists() or not expand_home(path).exists():
            return text, 1.0
        first, second = math.nan, []
    if len(second) > 1 or not all(map(math.isfinite, (first, *second))):
        raise ValueError(
            f"--lora {text}: the scale is {scale!r}, but it must be a number, or two with a comma, "
            "for the U-Net and for the text encoder, such as FILE@0.8 or FILE@0.8,0.5"
        )
    return path, (first, second[0]) if second else first


def check_verifiers() -> None:
    """Raises ValueError unless the libraries that --verify compares with are installed."""
    if missing := [name for name in VERIFIERS if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"--verify needs {', '.join(VERIFIERS)}, and {', '.join(missing)} is not installed: "
            "pip install 'reground-jax[verify]'"
        )


def check_verifiable(source: str) -> None:
    """Raises ValueError for a model directory, which no library reads."""
    from reground_jax.model import is_model_directory

    if is_model_directory(expand_home(source)):
        raise ValueError(
            f"--verify compares with PyTorch's networks, but {source} is a model directory: verify "
            "the conversion of the checkpoint that it comes from"
        )


def verified(arguments: argparse.Namespace, destination: Path) -> int:
    """Prints the error of each network; returns 1 if one exceeds the tolerance, else 0."""
    from reground_jax.convert.verification import TOLERANCE, verify

    errors = verify(arguments.source, destination, **weights_of(arguments))
    for network, error in errors.items():
        verdict = "matches PyTorch" if error <= TOLERANCE else f"ABOVE the tolerance {TOLERANCE:g}"
        print(f"  verify        {network} differs by {error:.1e} of its largest value: {verdict}")
    # NaN fails this comparison, as it should.
    return 0 if all(error <= TOLERANCE for error in errors.values()) else 1

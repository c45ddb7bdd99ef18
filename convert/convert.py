"""From a checkpoint in any form to a model directory, array by array.

    source -> Gathered (config, and where each tensor is, by diffusers name) -> match -> write_model

To add a format: detect it in `sources.py`, and give it a function below that returns `Gathered`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from reground_jax.config import ModelConfig, UNetConfig
from reground_jax.model import NETWORKS, leaf_shapes, write_model
from reground_jax.sampling.schedule import alphas_cumprod
from reground_jax.version import __version__

from . import configs, original_configs
from .keys import Leaf, match, normalise
from .ldm import rename
from .sources import Source, TensorFile, open_folder, open_original, open_tensors, resolve
from .sources import resolve_tokenizer as find_tokenizer
from .tokenizers import BuiltTokenizer, build_tokenizer

DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
LDM_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
# Of a single file: the noise schedule's tables, and the training's averaged second copy.
LDM_IGNORED = ("alphas_cumprod", "betas", "log_one_minus", "model_ema.", "posterior_", "sqrt_")

Progress = Callable[[int, int], None]  # (parameters done, of how many)


@dataclass(frozen=True)
class Located:
    """One tensor of a source."""

    file: TensorFile
    name: str


Tensors = dict[str, dict[str, Located]]  # network -> diffusers name -> tensor


@dataclass(frozen=True)
class Gathered:
    config: ModelConfig
    tensors: Tensors
    tokenizer: BuiltTokenizer


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    adapter: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Converts `source` into the model directory `destination`; returns the facts of its `info`.

    source: a diffusers folder or Hub id, an original GLIGEN pickle, or a single-file SD1.x
    safetensors. adapter: fusers and position net alone, to go over a base without them. tokenizer:
    folder, Hub id or merges file, where the source has none (by default OpenAI's). dtype: float32,
    float16 or bfloat16; by default the source's. variant: such as "fp16", for diffusers folders.
    Raises ValueError for whatever is wrong, before anything is written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: choose from {', '.join(DTYPES)}, or leave it out")
    if Path(destination).exists():
        raise FileExistsError(f"{destination} exists already: choose another place, or remove it")
    found = resolve(source, variant)
    gathered = gather(found, tokenizer=tokenizer, variant=variant)
    if adapter is not None:
        gathered = add_adapter(gathered, resolve(adapter))
    elif not gathered.config.unet.grounded:
        raise ValueError(
            f"{source} is a plain Stable Diffusion checkpoint: it has no fusers and no position "
            "net; give a GLIGEN checkpoint, or --adapter with GLIGEN's weights to put over it"
        )
    shapes = leaf_shapes(gathered.config)
    leaves = match(
        shapes,
        {
            network: {name: t.file.shape(t.name) for name, t in tensors.items()}
            for network, tensors in gathered.tensors.items()
        },
    )
    info = {"source": str(source), "format": found.kind, "version": __version__}
    if adapter is not None:
        info["adapter"] = str(adapter)
    arrays = read_arrays(leaves, gathered.tensors, dtype, progress)
    return write_model(destination, gathered.config, arrays, gathered.tokenizer.json, info)


def read_arrays(
    leaves: list[Leaf], tensors: Tensors, dtype: str | None, progress: Progress | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameters one after the other; each tensor is read when its parameter is due."""
    total, done = sum(int(np.prod(leaf.shape)) for leaf in leaves), 0
    for leaf in leaves:
        located = [tensors[leaf.path.split("/")[0]][name] for name in leaf.sources]
        array = leaf.build([t.file.read(t.name) for t in located])
        yield leaf.path, array if dtype is None else array.astype(DTYPES[dtype])
        done += array.size
        if progress is not None:
            progress(done, total)


def gather(
    source: Source, *, tokenizer: str | Path | None = None, variant: str | None = None
) -> Gathered:
    """Config, tensors and tokenizer of a source, whatever its form."""
    match source.kind:
        case "diffusers":
            return _gather_diffusers(source.path, tokenizer, variant)
        case "original":
            return _gather_original(source.path, tokenizer)
        case "ldm":
            return _gather_ldm(source.path, tokenizer)
        case "adapter":
            raise ValueError(
                f"{source.path} is a GLIGEN adapter (fusers and position net alone): give the "
                "Stable Diffusion checkpoint as SOURCE and this file with --adapter"
            )
        case "ours":
            raise ValueError(f"{source.path} is a model directory of reground-jax already: load it")


def _gather_diffusers(folder: Path, tokenizer: str | Path | None, variant: str | None) -> Gathered:
    built = build_tokenizer(find_tokenizer(tokenizer) if tokenizer else folder / "tokenizer")
    config = configs.from_folder(folder, built.config)
    tensors: Tensors = {}
    for network in NETWORKS:
        file = open_folder(folder / network, variant)
        tensors[network] = {normalise(network, name): Located(file, name) for name in file.keys()}
    return Gathered(config, tensors, built)


def _gather_original(path: Path, tokenizer: str | Path | None) -> Gathered:
    parts, fields = open_original(path)
    config = original_configs.translate(fields, parts["text_encoder"])
    _check_schedule(path, config, parts["diffusion"])
    names = {"unet": "model", "vae": "autoencoder", "text_encoder": "text_encoder"}
    tensors = {
        network: {
            normalise(network, rename(network, name, config)): Located(parts[part], name)
            for name in parts[part].keys()
        }
        for network, part in names.items()
    }
    return _with_tokenizer(config, tensors, tokenizer)


def _gather_ldm(path: Path, tokenizer: str | Path | None) -> Gathered:
    file = open_tensors(path)
    config = original_configs.from_single_file(file)
    tensors: Tensors = {network: {} for network in NETWORKS}
    strangers = []
    for name in file.keys():
        for network, prefix in LDM_PREFIXES.items():
            if name.startswith(prefix):
                inner = rename(network, name.removeprefix(prefix), config)
                tensors[network][normalise(network, inner)] = Located(file, name)
                break
        else:
            if not name.startswith(LDM_IGNORED):
                strangers.append(name)
    if strangers:
        raise ValueError(
            f"{path} has {len(strangers)} arrays of no known part of Stable Diffusion: "
            + ", ".join(strangers[:5])
        )
    return _with_tokenizer(config, tensors, tokenizer)


def _with_tokenizer(
    config: ModelConfig, tensors: Tensors, tokenizer: str | Path | None
) -> Gathered:
    """A checkpoint that carries no tokenizer, with one that fits; its padding and length hold."""
    built = build_tokenizer(find_tokenizer(tokenizer or DEFAULT_TOKENIZER))
    ours, theirs = config.tokenizer, built.config
    if (ours.bos_token_id, ours.eos_token_id) != (theirs.bos_token_id, theirs.eos_token_id):
        raise ValueError(
            f"the tokenizer begins and ends texts with {theirs.bos_token_id} and "
            f"{theirs.eos_token_id}, the checkpoint's text encoder (a vocabulary of "
            f"{config.text_encoder.vocab_size}) with {ours.bos_token_id} and {ours.eos_token_id}: "
            "give the tokenizer that belongs to it with --tokenizer"
        )
    config = configs.check_together(dataclasses.replace(config, tokenizer=theirs))
    return Gathered(config, tensors, built)


def _check_schedule(path: Path, config: ModelConfig, tables: TensorFile) -> None:
    """The noise schedule that the file stores must be the one that its config describes."""
    stored = tables.read("alphas_cumprod").astype(np.float64)
    ours = alphas_cumprod(config.schedule)
    # 1e-5: the stored table is a float32 cumulative product.
    if stored.shape != ours.shape or np.abs(stored - ours).max() > 1e-5:
        raise ValueError(
            f"{path}: its alphas_cumprod is not that of its config "
            f"({config.schedule.beta_schedule} {config.schedule.beta_start}.."
            f"{config.schedule.beta_end}): the file is inconsistent"
        )


def add_adapter(base: Gathered, adapter: Source) -> Gathered:
    """`base` with the fusers and the position net of an adapter file."""
    if adapter.kind != "adapter":
        raise ValueError(
            f"--adapter {adapter.path} is a whole checkpoint ({adapter.kind}), not an adapter: "
            "convert it by itself"
        )
    if base.config.unet.grounded:
        raise ValueError("the base has fusers already: an adapter goes over plain Stable Diffusion")
    unet: UNetConfig = dataclasses.replace(base.config.unet, grounded=True)
    config = dataclasses.replace(base.config, unet=unet)
    file = open_tensors(adapter.path)
    extra = {rename("unet", name, config): Located(file, name) for name in file.keys()}
    tensors = base.tensors | {"unet": base.tensors["unet"] | extra}
    return Gathered(config, tensors, base.tokenizer)

"""Converts a checkpoint in any format to a model directory, array by array.

    source -> Gathered (config, and where each tensor is, by diffusers name) -> match -> write_model

To add a format, detect it in `sources.py` and add a function below that returns `Gathered`.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from reground_jax.config import ModelConfig, VAEConfig
from reground_jax.model import leaf_shapes, write_model
from reground_jax.sampling.schedule import alphas_cumprod
from reground_jax.version import __version__

from . import companions, configs, lora, lora_models, openclip, original_configs, single_file
from .adapters import add_adapter
from .autoencoders import gather_autoencoder
from .embeddings import Embedding, add_embeddings, read_embedding
from .full_disk import naming_a_full_disk
from .gathered import Gathered
from .keys import Leaf, count, foreign, match, normalize
from .ldm import LDM_PREFIXES, rename
from .passing import Progress, passed
from .sources import (
    Located,
    Source,
    TensorFile,
    Tensors,
    open_folder,
    open_original,
    open_tensors,
    resolve,
)
from .sources import resolve_tokenizer as find_tokenizer
from .tokenizers import BuiltTokenizer, build_tokenizer

DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# In every single file: the noise schedule's tables and the EMA weights.
LDM_IGNORED = (
    "alphas_cumprod", "betas", "log_one_minus", "model_ema.", "posterior_", "scale_factor", "sqrt_",
    single_file.V_PREDICTION, single_file.ZERO_SNR,
)  # fmt: skip
# In some: loss weights, another codebase's noise table, textual-inversion embeddings in the
# original code's format, and a safety checker.
LDM_FOREIGN = ("denoiser.", "embedding_manager.", "logvar", "lvlb_weights", "safety_checker.")
OUTSIDE = "position_net."  # in some single files, not under the U-Net's prefix


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    adapter: str | Path | None = None,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    prediction: single_file.Prediction | None = None,
    clip: str | Path | None = None,
    projection: str | Path | None = None,
    first_conv: str | Path | None = None,
    loras: Sequence[tuple[str | Path, lora.Scale]] = (),
    embeddings: Sequence[str | Path] = (),
    clip_skip: int = 0,
    dtype: str | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Converts `source` to the model directory `destination`, and returns its `info`.

    source: a diffusers folder or Hub id, an original GLIGEN pickle, a single file of SD1.x or
    SD2.x, or, with `loras`, a model directory (see `lora_models.add_to_model`). adapter: only
    fusers and position net, to add to a base without them. vae: another autoencoder than the
    source's, or one for a source without (see `gather_autoencoder`). tokenizer: a folder, Hub id or
    merges file, if the source has none (default: OpenAI's). prediction: what a single file's U-Net
    predicts, which those of SD2.x do not say. clip, projection: the image encoder of a model that
    reads reference images, and the projection of its output (see
    `image_towers.gather_image_tower`). first_conv: the first convolution of Stable Diffusion, for a
    model that reads a map, which without it only generates with gamma 1 (see `find_first_conv`).
    loras: paths or Hub ids of LoRAs to add, each with its scale, or with a pair of scales, for the
    U-Net and for the text encoder. embeddings: those of textual inversion (see `read_embedding`).
    clip_skip: how many of the text encoder's last layers prompts skip. dtype: float32, float16 or
    bfloat16 (default: the source's). variant: such as "fp16", for diffusers folders. Raises
    ValueError for anything wrong with the source, FileExistsError if `destination` exists or
    appears during the conversion, and OSError for a full disk; nothing is left behind.
    """
    _check(destination, dtype)
    added, tokens = lora.find(loras), [read_embedding(path) for path in embeddings]
    found = resolve(source, variant)
    own = {"clip": clip, "projection": projection, "first_conv": first_conv}
    others = _given(adapter=adapter, vae=vae, **own)
    if found.kind == "ours" and added:
        others |= _given(tokenizer=tokenizer, prediction=prediction)
        others |= {"embedding": ""} if tokens else {}
        return lora_models.add_to_model(
            found.path, destination, added, others, DTYPES.get(dtype or ""), progress
        )
    gathered = gather(found, tokenizer=tokenizer, variant=variant, vae=vae, prediction=prediction)
    gathered = add_adapter(gathered, None if adapter is None else resolve(adapter), source)
    gathered = companions.add_all(gathered, found, variant=variant, **own)
    gathered = with_clip_skip(add_embeddings(gathered, tokens), clip_skip)
    config, tensors = gathered.config, gathered.tensors
    leaves = match(leaf_shapes(config), {n: _shapes(named) for n, named in tensors.items()})
    tensors = lora.with_deltas(tensors, lora.deltas_of(added, leaves))
    _name_foreign(source, [*gathered.foreign, *foreign(tensors)])
    info: dict[str, Any] = {"source": str(source), "format": found.kind, "version": __version__}
    info |= others | _records(loras=added, embeddings=tokens)
    arrays = read_arrays(leaves, tensors, dtype, progress)
    with naming_a_full_disk(Path(destination)):
        return write_model(destination, config, arrays, gathered.tokenizer.json, info)


def _check(destination: str | Path, dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: choose from {', '.join(DTYPES)}, or leave it out")
    if Path(destination).exists():
        raise FileExistsError(f"{destination} already exists: choose another path, or remove it")


def _records(**added: Sequence[lora.Lora] | Sequence[Embedding]) -> dict[str, Any]:
    """What `info` says of the files that were added."""
    return {name: [one.record() for one in files] for name, files in added.items() if files}


def _given(**options: str | Path | None) -> dict[str, str]:
    """Those that are given, as texts."""
    return {name: str(value) for name, value in options.items() if value is not None}


def _shapes(named: dict[str, Located]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in named.items()}


def _name_foreign(source: str | Path, names: list[str]) -> None:
    """Warns about ignored arrays that only some checkpoints have."""
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(
            f"{source}: {', '.join(names[:5])}{more}: ignored, since they are not used to generate "
            "images",
            stacklevel=3,
        )


def read_arrays(
    leaves: list[Leaf], tensors: Tensors, dtype: str | None, progress: Progress | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields our parameters one by one, reading each tensor only when it is needed."""
    kind = None if dtype is None else DTYPES[dtype]

    def located(leaf: Leaf) -> list[Located]:
        return [tensors[leaf.path.split("/")[0]][name] for name in leaf.sources]

    def refuse(leaf: Leaf, stored: np.dtype) -> None:
        _refuse_not_finite(located(leaf), stored)

    arrays = ((leaf, leaf.build([t.read(kind) for t in located(leaf)])) for leaf in leaves)
    yield from passed(arrays, count(leaves), kind, progress, refuse)


def _refuse_not_finite(located: list[Located], stored: np.dtype) -> None:
    """Raises ValueError that names the tensor and blames the file or the dtype."""
    for tensor in located:
        array = tensor.file.read(tensor.name)
        if bad := array.size - int(np.isfinite(array).sum()):
            raise ValueError(
                f"{tensor.file.name}: {tensor.name} has NaN or infinite values ({bad} of "
                f"{array.size}), which would ruin every image: the checkpoint is damaged, or a "
                "merge or cast overflowed; use another copy"
            )
    names = ", ".join(tensor.name for tensor in located)
    added = " with the LoRAs added" if any(tensor.deltas for tensor in located) else ""
    raise ValueError(
        f"{located[0].file.name}: {names} has values too large for {stored}{added}: use --dtype "
        "bfloat16 or float32"
    )


def gather(
    source: Source,
    *,
    tokenizer: str | Path | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    prediction: single_file.Prediction | None = None,
) -> Gathered:
    """The config, tensors and tokenizer of a source in any format; the options as in `convert`."""
    if prediction is not None and source.kind != "ldm":
        raise ValueError(f"{source.path} says what its U-Net predicts: leave out --prediction")
    autoencoder = None if vae is None else gather_autoencoder(vae)
    match source.kind:
        case "diffusers":
            gathered = _gather_diffusers(source.path, tokenizer, variant)
        case "original":
            gathered = _gather_original(source.path, tokenizer)
        case "ldm":
            own = autoencoder and autoencoder[0]
            gathered = _gather_ldm(source.path, tokenizer, prediction, own)
        case "adapter":
            raise ValueError(
                f"{source.path} is a GLIGEN adapter (only fusers and position net): pass the "
                "Stable Diffusion checkpoint as SOURCE and this file with --adapter"
            )
        case "ours":
            raise ValueError(
                f"{source.path} is already a reground-jax model directory: load it, or add a LoRA "
                "with --lora"
            )
        case "lora":
            raise ValueError(
                f"{source.path} is a LoRA, which changes a checkpoint: pass that as SOURCE and "
                "this file with --lora"
            )
    if autoencoder is None:
        return gathered
    config, tensors = autoencoder
    whole = configs.check_together(dataclasses.replace(gathered.config, vae=config))
    return dataclasses.replace(gathered, config=whole, tensors=gathered.tensors | {"vae": tensors})


def _gather_diffusers(folder: Path, tokenizer: str | Path | None, variant: str | None) -> Gathered:
    built = build_tokenizer(find_tokenizer(tokenizer) if tokenizer else folder / "tokenizer")
    config = configs.from_folder(folder, built.config)
    check_vocabulary(built, config)
    tensors: Tensors = {}
    for network in config.networks:
        file = open_folder(folder / network, variant)
        tensors[network] = {normalize(network, name): Located(file, name) for name in file.keys()}
    return Gathered(config, tensors, built)


def _gather_original(path: Path, tokenizer: str | Path | None) -> Gathered:
    parts, fields = open_original(path)
    config = original_configs.translate(fields, parts)
    _check_schedule(path, config, parts["diffusion"])
    names = {"unet": "model", "vae": "autoencoder", "text_encoder": "text_encoder"}
    tensors = {
        network: {
            normalize(network, rename(network, name, config)): Located(parts[part], name)
            for name in parts[part].keys()
        }
        for network, part in names.items()
    }
    return _with_tokenizer(config, tensors, tokenizer)


def _gather_ldm(
    path: Path,
    tokenizer: str | Path | None,
    prediction: single_file.Prediction | None,
    vae: VAEConfig | None,
) -> Gathered:
    """vae: of the autoencoder that will replace the file's, if one will."""
    file, heads = open_tensors(path), 8
    if openclip.has_openclip(file):
        file, heads = openclip.as_clip(file), None
    config = single_file.from_single_file(file, heads, prediction=prediction, vae=vae)
    tensors: Tensors = {network: {} for network in config.networks}
    strangers, passed = [], []
    prefixes = [*LDM_PREFIXES.items(), ("unet", OUTSIDE)]
    for name in file.keys():
        for network, prefix in prefixes:
            if name.startswith(prefix):
                inner = name if prefix == OUTSIDE else name.removeprefix(prefix)
                inner = rename(network, inner, config)
                tensors[network][normalize(network, inner)] = Located(file, name)
                break
        else:
            if name.startswith(LDM_FOREIGN):
                passed.append(name)
            elif not name.startswith(LDM_IGNORED):
                strangers.append(name)
    if strangers:
        raise ValueError(
            f"{path} has arrays that belong to no known part of Stable Diffusion "
            f"({len(strangers)}): {', '.join(strangers[:5])}"
        )
    pad = openclip.PAD if heads is None else None
    gathered = _with_tokenizer(config, tensors, tokenizer, pad)
    return dataclasses.replace(gathered, foreign=tuple(passed))


def _with_tokenizer(
    config: ModelConfig,
    tensors: Tensors,
    tokenizer: str | Path | None,
    pad: int | None = None,
) -> Gathered:
    """Adds a matching tokenizer to a checkpoint without one; its padding and length apply.

    pad: the token id for padding, whatever the tokenizer says.
    """
    built = build_tokenizer(find_tokenizer(tokenizer or DEFAULT_TOKENIZER))
    if pad is not None:
        built = built._replace(config=dataclasses.replace(built.config, pad_token_id=pad))
    text, theirs = config.text_encoder, built.config
    ours = text.tokenizer
    if (ours.bos_token_id, ours.eos_token_id) != (theirs.bos_token_id, theirs.eos_token_id):
        raise ValueError(
            f"the tokenizer begins and ends texts with {theirs.bos_token_id} and "
            f"{theirs.eos_token_id}, but the checkpoint's text encoder (vocabulary of "
            f"{text.network.vocab_size}) with {ours.bos_token_id} and {ours.eos_token_id}: "
            "pass the matching tokenizer with --tokenizer"
        )
    text = dataclasses.replace(text, tokenizer=theirs)
    config = configs.check_together(dataclasses.replace(config, text_encoders=(text,)))
    check_vocabulary(built, config)
    return Gathered(config, tensors, built)


def check_vocabulary(built: BuiltTokenizer, config: ModelConfig) -> None:
    """Checks that the tokenizer has as many tokens as the text encoder's embedding has rows.

    Raises ValueError for more tokens, and warns about fewer: a file of added tokens may be missing.
    """
    rows = config.text_encoder.network.vocab_size
    if built.size > rows:
        raise ValueError(
            f"the tokenizer has {built.size} tokens, but the text encoder has only {rows}: use the "
            "matching tokenizer, or remove the added tokens"
        )
    if built.size < rows:
        warnings.warn(
            f"the tokenizer has {built.size} tokens, but the text encoder has {rows}: prompts "
            f"cannot use the last {rows - built.size}; if tokens were added to this model, pass "
            "the folder with added_tokens.json as --tokenizer",
            stacklevel=4,
        )


def _check_schedule(path: Path, config: ModelConfig, tables: TensorFile) -> None:
    """Raises ValueError if the stored noise schedule is not the one that the config describes."""
    stored = tables.read("alphas_cumprod").astype(np.float64)
    ours = alphas_cumprod(config.schedule)
    # 1e-5: the stored table is a float32 cumulative product.
    if stored.shape != ours.shape or np.abs(stored - ours).max() > 1e-5:
        raise ValueError(
            f"{path} is inconsistent: its alphas_cumprod does not match its config "
            f"({config.schedule.beta_schedule} {config.schedule.beta_start}.."
            f"{config.schedule.beta_end})"
        )


def with_clip_skip(gathered: Gathered, skip: int) -> Gathered:
    """The same, with so many of the text encoder's last layers skipped by prompts, not by phrases.

    Raises ValueError for more layers than there are.
    """
    text = gathered.config.text_encoder
    if not 0 <= skip < text.network.num_layers:
        raise ValueError(
            f"clip_skip is {skip}, but the text encoder has {text.network.num_layers} layers: "
            "choose a smaller number, or 0 to skip none"
        )
    network = dataclasses.replace(text.network, clip_skip=skip)
    encoders = (dataclasses.replace(text, network=network),)
    config = dataclasses.replace(gathered.config, text_encoders=encoders)
    return dataclasses.replace(gathered, config=config)

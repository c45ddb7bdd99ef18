"""Opens a stage: its data, the model it starts from, and every check, before any work."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reground_jax.basics.fields import check_name, parse
from reground_jax.config import ModelConfig, TextEncoderConfig
from reground_jax.devices import Device
from reground_jax.model import read_model
from reground_jax.networks.attention import attention_for
from reground_jax.storage.checkpoint import flatten
from reground_jax.storage.facts import is_grounding
from reground_jax.training.config import StageConfig
from reground_jax.training.initial import (
    changed,
    check_kept,
    completed,
    fitting_fusers,
    is_decoder,
    reads_map,
    regrounded,
)
from reground_jax.training.losses import AutoencoderTerms, DiffusionTerms
from reground_jax.training.sources import Data, open_data
from reground_jax.training.state import Leaves

Terms = AutoencoderTerms | DiffusionTerms
# Which parameters a stage trains, by flat name; the rest are frozen. `trained` knows of maps, too.
TRAINED: dict[str, Callable[[str], bool]] = {
    "autoencoder": lambda name: name.startswith("vae/"),
    "text_to_image": lambda name: not name.startswith("vae/"),
    "grounding": is_grounding,
    "decoder": is_decoder,
}
# Valid fields of "loss": without grounding, some DiffusionTerms would have no effect.
TERMS: dict[str, tuple[type[Terms], tuple[str, ...]]] = {
    "autoencoder": (AutoencoderTerms, ("kl_weight", "edge_weight", "scales")),
    "text_to_image": (DiffusionTerms, ("caption_drop", "min_snr_gamma")),
    "grounding": (
        DiffusionTerms, ("caption_drop", "grounding_drop", "box_attention", "min_snr_gamma"),
    ),
    "decoder": (AutoencoderTerms, ("kl_weight", "edge_weight", "scales")),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """Everything that one `train` command works with."""

    kind: str  # a key of TRAINED
    config: StageConfig
    terms: Terms
    data: Data
    model: ModelConfig
    leaves: Leaves  # parameters of all networks, by flat name
    tokenizer_json: str
    out: Path
    devices: tuple[Device, ...]
    info: dict[str, Any]
    experiment: dict[str, Any]  # what the results depend on besides the recipe
    accept_changes: bool = False  # resume in `out` even if its experiment differs

    def attend(self) -> Callable[..., Any]:
        """For the autoencoder beside the step; the loss has its own (`stages.stage_loss`)."""
        return attention_for(self.devices[0].platform, "plain")

    def layouts(self) -> list[Any]:
        return list(self.data.heldout(self.config.num_samples))


def open_stage(
    kind: str,
    config: StageConfig,
    out: Path,
    *,
    base: Path | None,
    fusers: Path | None = None,
    devices: Sequence[Device] | None = None,
    accept_changes: bool = False,
) -> Stage:
    """Everything a stage starts with. Raises ValueError for anything that does not fit.

    base: model directory of the previous stage; None starts from scratch (autoencoder only).
    fusers: a grounded model directory whose fusers and position net initialize the "grounding"
    stage. Raises FileExistsError if `out` already has a model.
    """
    terms = _check_request(kind, config, out, base, fusers)
    data = open_data(config.source, config.folder)
    before, leaves, tokenizer_json, info, origins = _start(data, base)
    model = stage_model(kind, config, before)
    check_labels(kind, config, data)
    check_size(kind, model, terms, np.shape(data.heldout(1)[0].image)[0])
    if is_diffusion(kind):
        leaves = regrounded(leaves, before.unet, model.unet)
    if kind != "autoencoder":
        check_kept(model, leaves, trained(kind, config))
    if fusers is not None:
        given = read_model(fusers)
        leaves |= fitting_fusers(given, model, fusers, trained(kind, config))
        earlier = [r for r in given.info.get("training", []) if r.get("stage") == "grounding"]
        info["training"] = [*info["training"], *earlier]
        origins["fusers"] = given.info.get("checksum")
    leaves = completed(model, leaves, seed=config.recipe.seed, fuser_start=config.fuser_start)
    origins["tokenizer"] = hashlib.sha256(tokenizer_json.encode()).hexdigest()
    identity = experiment(kind, config, terms, data, model, origins)
    return Stage(
        kind, config, terms, data, model, leaves, tokenizer_json, out,
        tuple(devices or jax.devices()), info, identity, accept_changes,
    )  # fmt: skip


def is_diffusion(kind: str) -> bool:
    return TERMS[kind][0] is DiffusionTerms


def stage_model(kind: str, config: StageConfig, base: ModelConfig) -> ModelConfig:
    """The model that a stage trains, given that of the stage before."""
    model = changed(base, config.model)
    if not is_diffusion(kind):
        return model
    grounding, own = (config.grounding, config.map) if kind == "grounding" else (None, None)
    unet = dataclasses.replace(model.unet, grounding=grounding, map=own, first_conv=own is not None)
    return dataclasses.replace(model, unet=unet)


def trained(kind: str, config: StageConfig) -> Callable[[str], bool]:
    """Which parameters a stage trains, by flat name."""
    return reads_map if kind == "grounding" and config.map is not None else TRAINED[kind]


def stage_terms(kind: str, config: StageConfig) -> Terms:
    """The terms of the loss. Raises ValueError for those that the stage or `remat` excludes."""
    check_name("stage", kind, TRAINED)
    terms, known = TERMS[kind]
    parsed = parse(terms, config.loss, "loss", known=known)
    if config.map is not None and kind != "grounding":
        raise ValueError(f"grounding is {config.grounding!r}, but {kind} learns none: remove it")
    if config.map is not None and getattr(parsed, "box_attention", 0):
        raise ValueError(
            f"loss.box_attention is about boxes, but grounding {config.grounding!r} has none: set "
            "it to 0"
        )
    if config.remat != "none" and getattr(parsed, "box_attention", 0):
        raise ValueError(
            f"remat is {config.remat!r}, but loss.box_attention reads what it does not store: "
            'set remat to "none", or box_attention to 0'
        )
    return parsed


def _check_request(
    kind: str, config: StageConfig, out: Path, base: Path | None, fusers: Path | None
) -> Terms:
    """Checks that need no data. Returns the loss terms."""
    parsed = stage_terms(kind, config)
    if config.cache_examples and not is_diffusion(kind):
        raise ValueError(f"cache_examples caches latents, and {kind} has none: remove it")
    if base is None and kind != "autoencoder":
        raise ValueError(f"stage {kind} starts from a trained model: give --from DIR")
    if fusers is not None and kind != "grounding":
        raise ValueError(f"--fusers is only for stage grounding, not for {kind}")
    if (out / "model").exists():
        raise FileExistsError(
            f"{out}/model already exists: that run is finished; choose another --out, or remove "
            "the model to continue from its last checkpoint"
        )
    return parsed


def _start(
    data: Data, base: Path | None
) -> tuple[ModelConfig, Leaves, str, dict[str, Any], dict[str, Any]]:
    """(model, its leaves, tokenizer.json, info for the new model, identity of its origin)."""
    if base is not None:
        given = read_model(base)
        info = {"source": given.info.get("source"), "training": given.info.get("training", [])}
        origins = {"from": given.info.get("checksum")}
        return given.config, dict(flatten(given.params)), given.tokenizer_json, info, origins
    if data.tokenizer is None:
        raise ValueError(
            "this source has no tokenizer: give --from DIR, a model to start from "
            "(`reground-jax convert` makes one from any Stable Diffusion checkpoint)"
        )
    tokenizer_json, tokenizer = data.tokenizer
    info = {"source": "trained by reground_jax.training", "training": []}
    text = TextEncoderConfig(tokenizer=tokenizer)
    return ModelConfig(text_encoders=(text,)), {}, tokenizer_json, info, {}


def check_size(kind: str, model: ModelConfig, terms: Terms, side: int) -> None:
    """Raises ValueError unless the networks and the loss accept images of `side` pixels."""
    multiple, why = model.vae.downsampling, "the autoencoder"
    if isinstance(terms, AutoencoderTerms):
        smallest = 2 ** (terms.scales - 1)
        if side // smallest < 2 or side % smallest:
            multiple, why = smallest, f"the edge loss at {terms.scales} scales"
    if side % multiple or side < 2 * multiple:
        raise ValueError(
            f"images are {side} pixels wide: {why} needs a multiple of {multiple}, "
            f"at least {2 * multiple}"
        )
    if not is_diffusion(kind):
        return
    own = model.side
    if side != own:
        raise ValueError(
            f"images are {side} pixels wide, but the model's are {own}: set the source's size to "
            f'{own}, or change the model to {side} pixels with "model": {{"unet": '
            f'{{"sample_size": {side // model.vae.downsampling}}}}}'
        )
    if model.unet.inpainting or model.unet.in_channels != model.vae.latent_channels:
        raise ValueError(
            f"the U-Net takes {model.unet.in_channels} channels, but latents have "
            f"{model.vae.latent_channels}: inpainting models cannot be trained"
        )


def check_labels(kind: str, config: StageConfig, data: Data) -> None:
    """Raises ValueError unless the examples have the labels that the stage learns to read."""
    if kind != "grounding" or config.map is None:
        return
    if data.classes is None:
        raise ValueError(
            f"source {config.source.get('kind')!r} has no labels of its pixels, which grounding "
            f'{config.grounding!r} learns to read: use source "emoji", or grounding "text"'
        )
    if data.classes != config.map.classes:
        raise ValueError(
            f"map.classes is {config.map.classes}, but the source has {data.classes}, with the "
            f"background: set it to {data.classes}"
        )


def experiment(
    kind: str,
    config: StageConfig,
    terms: Terms,
    data: Data,
    model: ModelConfig,
    origins: dict[str, Any],
) -> dict[str, Any]:
    """What a run's results depend on besides its recipe, as JSON."""
    loss = dataclasses.asdict(terms)
    value = {
        "stage": kind, "start": origins, "data": dict(data.identity), "model": model.to_json(),
        "loss": {name: loss[name] for name in TERMS[kind][1]}, "dtype": config.dtype,
    }  # fmt: skip
    if is_diffusion(kind):
        value["cache_batches"] = config.cache_examples // config.recipe.batch_size
    if kind == "grounding":
        value |= {"wiring": config.wiring, "fuser_start": config.fuser_start}
    return value

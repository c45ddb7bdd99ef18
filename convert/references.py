"""Loads a checkpoint into PyTorch's networks with third-party code: the reference for `verify`.

This uses diffusers' and transformers' own loaders and, for the original layouts, diffusers'
single-file converters. Our key tables (`keys.py`, `ldm.py`) are not used, so errors in them show.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from reground_jax.config import CLIPVisionConfig, ModelConfig, TextEncoderConfig, UNetConfig
from reground_jax.model import leaf_shapes

from . import openclip
from .autoencoders import vae_folder, vae_prefix
from .embeddings import Embedding
from .file_names import pick_weights
from .first_conv import WAY_OUT, find_first_conv
from .image_towers import (
    PROJECT,
    TEXT_PROJECTION,
    image_part,
    open_projection,
    tower_places,
)
from .keys import FOREIGN, leaves_of, normalize
from .ldm import LDM_PREFIXES
from .lora import Lora, deltas_of
from .reference_grounding import add_grounding, attention_type, grounding_names
from .sources import (
    Source,
    TensorFile,
    adapter_prefix,
    open_original,
    open_tensors,
    resolve,
    resolve_vae,
)

PARTS = {"unet": "model", "vae": "autoencoder", "text_encoder": "text_encoder"}  # parts of a pickle

State = dict[str, Any]  # torch tensors by name


def import_libraries() -> SimpleNamespace:
    try:
        import diffusers
        import torch
        import transformers
        from diffusers.loaders import single_file_utils
    except ImportError as error:
        raise ValueError(
            f"verifying needs torch, diffusers and transformers ({error}): "
            "pip install 'reground-jax[verify]'"
        ) from error
    return SimpleNamespace(
        torch=torch, diffusers=diffusers, transformers=transformers, ldm=single_file_utils
    )


def reference_networks(
    found: Source,
    ours: ModelConfig,
    libraries: SimpleNamespace,
    *,
    adapter: str | Path | None = None,
    vae: str | Path | None = None,
    clip: str | Path | None = None,
    projection: str | Path | None = None,
    first_conv: str | Path | None = None,
    variant: str | None = None,
) -> dict[str, Any]:
    """PyTorch's networks of a source, by our network names.

    ours: the config it was converted to, for what the file leaves open. adapter, vae, clip,
    projection, first_conv, variant: as passed to `convert`. A first convolution for steps without
    fusers is `first_conv` of the U-Net. Raises ValueError for a source that is not a complete model
    or lacks a tensor.
    """
    if found.kind == "diffusers":
        kind = ours.unet.grounding if adapter is None else None
        own = {} if kind is None else {"attention_type": attention_type(kind)}
        theirs = _from_folder(found.path, variant, libraries, own)
        if adapter is not None:
            theirs["unet"] = _add_adapter(theirs["unet"], resolve(adapter).path, libraries)
    elif found.kind in ("original", "ldm"):
        theirs = _from_single_file(found.path, found.kind, adapter, ours, libraries)
    else:
        raise ValueError(
            f"{found.path} is of kind {found.kind!r}, which cannot be converted on its own"
        )
    if vae is not None:
        theirs["vae"] = _autoencoder(vae, ours, libraries)
    if ours.unet.first_conv:
        theirs["unet"].first_conv = _first_conv(first_conv, ours.unet, libraries.torch)
    if ours.image_encoder is not None:
        folder = found.path if found.kind == "diffusers" else None
        places = tower_places(folder, clip=clip, projection=projection)
        own_variants = [variant if place == folder else None for place in places]
        encoder, project = zip(places, own_variants, strict=True)
        theirs["image_encoder"] = _image_encoder(*encoder, ours.image_encoder, libraries)
        theirs["image_project"] = _image_project(*project, libraries.torch)
    return theirs


def add_embeddings(encoder: Any, embeddings: Iterable[Embedding], torch: Any) -> None:
    """Appends their vectors to a text encoder's, as rows for new tokens."""
    for embedding in embeddings:
        rows = torch.from_numpy(np.array(embedding.vectors, np.float32))
        table = encoder.get_input_embeddings()
        whole = torch.cat([table.weight.data.float(), rows])
        encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(whole))


def add_loras(theirs: dict[str, Any], loras: Sequence[Lora], ours: ModelConfig, torch: Any) -> None:
    """Adds LoRAs to the weights of PyTorch's networks, which become float32, in place.

    Which matrices belong to a weight is up to our reader; the product is PyTorch's.
    """
    for network, named in deltas_of(loras, leaves_of(leaf_shapes(ours))).items():
        if not named:
            continue
        parameters = theirs[network].float().named_parameters()
        weights = {normalize(network, name): weight for name, weight in parameters}
        for name, deltas in named.items():
            for delta in deltas:
                down, up = map(torch.from_numpy, delta.matrices())
                change = delta.factor * torch.mm(up, down)
                weights[name].data += change.view(weights[name].shape)


def _from_folder(
    folder: Path, variant: str | None, libraries: SimpleNamespace, fields: dict[str, Any]
) -> dict[str, Any]:
    """The networks of a diffusers folder. fields: of the U-Net's config, whatever the file says."""
    diffusers, transformers = libraries.diffusers, libraries.transformers
    paths = {part: folder / part for part in PARTS}
    options = {part: _variant(path, variant) for part, path in paths.items()}
    unet = diffusers.UNet2DConditionModel.from_pretrained(
        paths["unet"], **options["unet"], **fields
    )
    vae = diffusers.AutoencoderKL.from_pretrained(paths["vae"], **options["vae"])
    text, found = transformers.CLIPTextModel.from_pretrained(
        paths["text_encoder"], output_loading_info=True, **options["text_encoder"]
    )
    _check_loaded("text_encoder", found["missing_keys"], found["unexpected_keys"])
    return {"unet": unet, "vae": vae, "text_encoder": text}


def _variant(folder: Path, variant: str | None) -> dict[str, Any]:
    """The loaders must be told to use fp16; `convert` falls back to it by itself."""
    picked = pick_weights([entry.name for entry in folder.iterdir()], variant) or ""
    return {"variant": "fp16" if variant is None and ".fp16." in picked else variant}


def _autoencoder(source: str | Path, ours: ModelConfig, libraries: SimpleNamespace) -> Any:
    path = resolve_vae(source)
    if path.is_dir():
        folder = vae_folder(path)
        options = _variant(folder, None)
        return libraries.diffusers.AutoencoderKL.from_pretrained(folder, **options)
    file = open_tensors(path)
    prefix = vae_prefix(file)
    state = {
        LDM_PREFIXES["vae"] + name.removeprefix(prefix): _tensor(file, name, libraries.torch)
        for name in file.keys()
        if name.startswith(prefix)
    }
    return _ldm_vae(state, _original_config(*_ldm_params(ours)), libraries)


def _image_encoder(
    place: Path, variant: str | None, ours: CLIPVisionConfig, libraries: SimpleNamespace
) -> Any:
    """Of a folder of this network, of a full CLIPModel, or of a diffusers model."""
    folder = image_part(place, "image_encoder")
    # A full model's projection is as wide as its own config says, whatever its part's.
    model, found = libraries.transformers.CLIPVisionModelWithProjection.from_pretrained(
        folder,
        projection_dim=ours.projection_width,
        output_loading_info=True,
        **_variant(folder, variant),
    )
    _check_loaded("image_encoder", found["missing_keys"], found["unexpected_keys"])
    return model


def _image_project(place: Path, variant: str | None, torch: Any) -> Any:
    """diffusers' layer, x W^T, or GLIGEN's product with CLIP's text projection, x M."""
    file = open_projection(place, variant)
    turned = PROJECT not in file
    weight = _tensor(file, TEXT_PROJECTION if turned else PROJECT, torch)
    weight = weight.T if turned else weight
    layer = torch.nn.Linear(*reversed(weight.shape), bias=False)
    layer.load_state_dict({"weight": weight})
    return layer


def _first_conv(source: str | Path | None, config: UNetConfig, torch: Any) -> Any:
    if source is None:
        raise ValueError(f"the model has Stable Diffusion's first convolution: {WAY_OUT}")
    file, names = find_first_conv(source)
    conv = torch.nn.Conv2d(config.in_channels, config.block_channels[0], 3, padding=1)
    conv.load_state_dict({leaf: _tensor(file, name, torch) for leaf, name in names.items()})
    return conv


def _from_single_file(
    path: Path,
    kind: str,
    adapter: str | Path | None,
    ours: ModelConfig,
    libraries: SimpleNamespace,
) -> dict[str, Any]:
    """The networks of an original pickle ("original") or a Stable Diffusion single file ("ldm").

    A single file does not contain its configuration, and neither kind has the number of text
    encoder heads: these come from `ours`. Loading is strict, which checks every shape. A file
    without an autoencoder gives none.
    """
    unet = LDM_PREFIXES["unet"]
    if kind == "original":
        parts, fields = open_original(path)
        state = {
            LDM_PREFIXES[network] + name: tensor
            for network, part in PARTS.items()
            for name, tensor in _tensors(parts[part], libraries.torch).items()
        }
        config = _original_config(fields["model"]["params"], fields["autoencoder"]["params"])
    else:
        state = _tensors(open_tensors(path), libraries.torch)
        state = {unet * name.startswith("position_net.") + name: state[name] for name in state}
        config = _original_config(*_ldm_params(ours))
    if adapter is not None:
        fusers = _adapter(resolve(adapter).path, libraries.torch)
        state |= {unet + name: tensor for name, tensor in fusers.items()}
    networks = {
        "unet": _ldm_unet(state, config, ours.unet, libraries),
        "text_encoder": _ldm_text_encoder(state, ours.text_encoder, libraries),
    }
    if any(name.startswith(LDM_PREFIXES["vae"]) for name in state):
        networks["vae"] = _ldm_vae(state, config, libraries)
    return networks


def _adapter(path: Path, torch: Any) -> State:
    """By the names after whatever stands before all of them."""
    tensors = _tensors(open_tensors(path), torch)
    prefix = adapter_prefix(list(tensors)) or ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _tensors(file: TensorFile, torch: Any) -> State:
    """All tensors in float32, read by our own readers, which tests compare with torch's."""
    return {name: _tensor(file, name, torch) for name in file.keys()}


def _tensor(file: TensorFile, name: str, torch: Any) -> Any:
    return torch.from_numpy(np.array(file.read(name), np.float32, order="C"))


def _original_config(unet: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    """A config in the form of Stable Diffusion's YAML files, which diffusers' converters read."""
    unet = {"channel_mult": [1, 2, 4, 8], "num_heads": 8, "transformer_depth": 1} | unet
    params = {"unet_config": {"params": unet}, "first_stage_config": {"params": vae}}
    return {"model": {"params": params}}


def _ldm_params(ours: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    unet, vae = ours.unet, ours.vae
    return {
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "model_channels": unet.block_channels[0],
        "channel_mult": [c // unet.block_channels[0] for c in unet.block_channels],
        "num_res_blocks": unet.layers_per_block[0],
        "attention_resolutions": [2**i for i, there in enumerate(unet.down_attention) if there],
        "context_dim": unet.text_width,
    }, {
        "ddconfig": {
            "ch": vae.block_channels[0],
            "ch_mult": [c // vae.block_channels[0] for c in vae.block_channels],
            "num_res_blocks": vae.layers_per_block,
            "z_channels": vae.latent_channels,
            "in_channels": vae.image_channels,
            "out_ch": vae.image_channels,
        }
    }


def _ldm_unet(
    state: State, config: dict[str, Any], ours: UNetConfig, libraries: SimpleNamespace
) -> Any:
    prefix = LDM_PREFIXES["unet"]
    fields = libraries.ldm.create_unet_diffusers_config_from_ldm(config, state)
    # No shape tells the heads, which SD2.x has more of at every level; shapes tell linear layers.
    fields["attention_head_dim"] = list(ours.num_heads)
    projection = next(name for name in state if name.endswith(".proj_in.weight"))
    fields["use_linear_projection"] = state[projection].ndim == 2
    # GLIGEN's YAML says 4, not counting a mask and a masked image, or what a map appends.
    fields["in_channels"] = state[f"{prefix}input_blocks.0.0.weight"].shape[1]
    if ours.grounding is not None:
        fields["attention_type"] = attention_type(ours.grounding)
    named = libraries.ldm.convert_ldm_unet_checkpoint(state, fields)
    named |= grounding_names({name.removeprefix(prefix): state[name] for name in state})
    unet = libraries.diffusers.UNet2DConditionModel.from_config(fields)
    add_grounding(unet, ours, libraries)
    return _fill("unet", unet, named)


def _ldm_vae(state: State, config: dict[str, Any], libraries: SimpleNamespace) -> Any:
    fields = libraries.ldm.create_vae_diffusers_config_from_ldm(config, state)
    named = libraries.ldm.convert_ldm_vae_checkpoint(state, fields)
    return _fill("vae", libraries.diffusers.AutoencoderKL.from_config(fields), named)


def _ldm_text_encoder(state: State, ours: TextEncoderConfig, libraries: SimpleNamespace) -> Any:
    transformers, config, tokens = libraries.transformers, ours.network, ours.tokenizer
    fields = transformers.CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.max_length,
        hidden_act=config.activation,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    encoder = transformers.CLIPTextModel(fields)
    if any(name.startswith(openclip.PREFIX) for name in state):
        layers = [f"{openclip.PREFIX}transformer.resblocks.{i}." for i in range(config.num_layers)]
        others = f"{openclip.PREFIX}transformer."
        used = {n: state[n] for n in state if n.startswith((*layers,)) or others not in n}
        named = libraries.ldm.convert_open_clip_checkpoint(encoder, used)
    else:
        start = LDM_PREFIXES["text_encoder"]  # and "transformer.", except in some files
        bare = re.compile(rf"^{re.escape(start)}(?!transformer\.)")
        named = libraries.ldm.convert_ldm_clip_checkpoint(
            {bare.sub(f"{start}transformer.", name): state[name] for name in state}
        )
    prefix = "text_model." if hasattr(encoder, "text_model") else ""  # before transformers 5.6
    named = {prefix + name.removeprefix("text_model."): named[name] for name in named}
    return _fill("text_encoder", encoder, named)


def _add_adapter(base: Any, path: Path, libraries: SimpleNamespace) -> Any:
    """A diffusers U-Net with the fusers and position net of an adapter file."""
    adapter = _adapter(path, libraries.torch)
    fields = dict(base.config) | {"attention_type": "gated"}
    # The converter loops over the blocks that it counts, but an adapter does not have all of them.
    last = max(int(n.split(".")[1]) for n in adapter if n.startswith(("input_", "output_")))
    blocks = [f"{half}put_blocks.{i}" for half in ("in", "out") for i in range(last + 1)]
    blocks += [f"middle_block.{i}" for i in range(3)]
    counted = dict.fromkeys(f"{block}.counted" for block in blocks)
    named = libraries.ldm.convert_ldm_unet_checkpoint(
        {LDM_PREFIXES["unet"] + name: tensor for name, tensor in (adapter | counted).items()},
        fields,
    )
    named = {name: tensor for name, tensor in named.items() if tensor is not None}
    state = base.state_dict() | named | grounding_names(adapter)
    return _fill("unet", libraries.diffusers.UNet2DConditionModel.from_config(fields), state)


def _fill(name: str, model: Any, state: State) -> Any:
    missing, unexpected = model.load_state_dict(state, strict=False)  # wrong shapes raise
    _check_loaded(name, missing, unexpected)
    return model


def _check_loaded(name: str, missing: Any, unexpected: Any) -> None:
    unexpected = [key for key in unexpected if not FOREIGN[name].search(key)]
    wrong = [key for key in (*missing, *unexpected) if not key.endswith("position_ids")]
    if wrong:
        raise ValueError(
            f"the reference {name} cannot be loaded from the source: {len(wrong)} missing or "
            f"unexpected tensors, such as {wrong[0]}"
        )

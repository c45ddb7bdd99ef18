"""Loads a checkpoint into PyTorch's networks with third-party code: the reference for `verify`.

This uses diffusers' and transformers' own loaders and, for the original layouts, diffusers'
single-file converters. Our key tables (`keys.py`, `ldm.py`) are not used, so errors in them show.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from reground_jax.config import ModelConfig, TextEncoderConfig

from .keys import FOREIGN
from .ldm import LDM_PREFIXES
from .sources import (
    Source,
    TensorFile,
    open_original,
    open_tensors,
    pick_weights,
    resolve,
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
    adapter: str | Path | None,
    variant: str | None,
) -> dict[str, Any]:
    """PyTorch's U-Net, autoencoder and text encoder of a source, by our network names.

    ours: the config it was converted to, for what the file leaves open. Raises ValueError for a
    source that is not a complete model or lacks a tensor.
    """
    if found.kind == "diffusers":
        gated = adapter is None and ours.unet.grounding is not None
        theirs = _from_folder(found.path, variant, libraries, gated=gated)
        if adapter is not None:
            theirs["unet"] = _add_adapter(theirs["unet"], resolve(adapter).path, libraries)
        return theirs
    if found.kind in ("original", "ldm"):
        return _from_single_file(found.path, found.kind, adapter, ours, libraries)
    raise ValueError(
        f"{found.path} is of kind {found.kind!r}, which cannot be converted on its own"
    )


def _from_folder(
    folder: Path, variant: str | None, libraries: SimpleNamespace, *, gated: bool
) -> dict[str, Any]:
    """The networks of a diffusers folder. gated: the U-Net has fusers, whichever field says so."""
    diffusers, transformers = libraries.diffusers, libraries.transformers

    def options(part: str) -> dict[str, Any]:
        # The loaders must be told to use fp16; `convert` falls back to it by itself.
        picked = pick_weights([entry.name for entry in (folder / part).iterdir()], variant) or ""
        return {"variant": "fp16" if variant is None and ".fp16." in picked else variant}

    kind = {"attention_type": "gated"} if gated else {}
    unet = diffusers.UNet2DConditionModel.from_pretrained(
        folder / "unet", **options("unet"), **kind
    )
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", **options("vae"))
    text, found = transformers.CLIPTextModel.from_pretrained(
        folder / "text_encoder", output_loading_info=True, **options("text_encoder")
    )
    _check_loaded("text_encoder", found["missing_keys"], found["unexpected_keys"])
    return {"unet": unet, "vae": vae, "text_encoder": text}


def _from_single_file(
    path: Path,
    kind: str,
    adapter: str | Path | None,
    ours: ModelConfig,
    libraries: SimpleNamespace,
) -> dict[str, Any]:
    """The networks of an original pickle ("original") or a Stable Diffusion single file ("ldm").

    A single file does not contain its configuration, and neither kind has the number of text
    encoder heads: these come from `ours`. Loading is strict, which checks every shape.
    """
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
        config = _original_config(*_ldm_params(ours))
    if adapter is not None:
        fusers = _tensors(open_tensors(resolve(adapter).path), libraries.torch)
        state |= {LDM_PREFIXES["unet"] + name: tensor for name, tensor in fusers.items()}
    return {
        "unet": _ldm_unet(state, config, libraries),
        "vae": _ldm_vae(state, config, libraries),
        "text_encoder": _ldm_text_encoder(state, ours.text_encoder, libraries),
    }


def _tensors(file: TensorFile, torch: Any) -> State:
    """All tensors in float32, read by our own readers, which tests compare with torch's."""
    return {
        name: torch.from_numpy(np.array(file.read(name), np.float32, order="C"))
        for name in file.keys()
    }


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
        "num_heads": unet.num_heads[0],
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


def _ldm_unet(state: State, config: dict[str, Any], libraries: SimpleNamespace) -> Any:
    prefix = LDM_PREFIXES["unet"]
    fields = libraries.ldm.create_unet_diffusers_config_from_ldm(config, state)
    # The YAML of an inpainting GLIGEN says 4, not counting the mask and the masked image.
    fields["in_channels"] = state[f"{prefix}input_blocks.0.0.weight"].shape[1]
    if any(".fuser." in name for name in state):
        fields["attention_type"] = "gated"
    named = libraries.ldm.convert_ldm_unet_checkpoint(state, fields)
    named |= _position_net({name.removeprefix(prefix): state[name] for name in state})
    unet = libraries.diffusers.UNet2DConditionModel.from_config(fields)
    return _fill("unet", unet, named)


def _position_net(state: State) -> State:
    """The position net, whose names diffusers' GLIGEN script leaves the same in both layouts."""
    return {name: tensor for name, tensor in state.items() if name.startswith("position_net.")}


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
        hidden_act="quick_gelu",
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    encoder = transformers.CLIPTextModel(fields)
    named = libraries.ldm.convert_ldm_clip_checkpoint(state)
    if not hasattr(encoder, "text_model"):  # since transformers 5.6
        named = {name.removeprefix("text_model."): tensor for name, tensor in named.items()}
    return _fill("text_encoder", encoder, named)


def _add_adapter(base: Any, path: Path, libraries: SimpleNamespace) -> Any:
    """A diffusers U-Net with the fusers and position net of an adapter file."""
    adapter = _tensors(open_tensors(path), libraries.torch)
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
    state = base.state_dict() | named | _position_net(adapter)
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

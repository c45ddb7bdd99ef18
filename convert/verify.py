"""The proof of a conversion: PyTorch's networks and ours, on the same random inputs.

The references are filled by code that is not ours: diffusers' and transformers' own loaders, and
for the original layouts diffusers' single-file converters. Our key tables (`keys.py`, `ldm.py`)
take no part, so an error in them shows. Needs torch, diffusers and transformers.
"""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reground_jax.config import ModelConfig, TextEncoderConfig
from reground_jax.devices import compiler_options
from reground_jax.model import NETWORKS, Model, network, read_model
from reground_jax.networks.attention import attention_for
from reground_jax.networks.grounding.text import Grounding
from reground_jax.settings import Wiring

from .keys import FOREIGN
from .sources import ORIGINAL_PARTS, TensorFile, open_original, open_tensors, pick_weights, resolve

# Both sides are float32: rounding makes about 1e-6 (1e-5 at full size), a wrong epsilon 5e-5.
TOLERANCE = 1e-4

LDM_PREFIXES = ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")

State = dict[str, Any]  # torch tensors by name


def verify(
    source: str | Path,
    destination: str | Path,
    *,
    adapter: str | Path | None = None,
    variant: str | None = None,
) -> dict[str, float]:
    """Largest relative error, max |ours - theirs| / max |theirs|, by network.

    source, adapter, variant: as they were given to `convert`; destination: what it wrote. The
    networks run in float32 on 2 small random samples: the U-Net under both wirings, the
    autoencoder both ways, the text encoder's hidden states and pooled output. Where the result has
    another dtype than the source, the reference's weights are rounded to it. A good conversion
    stays below `TOLERANCE`. Raises ValueError where a package is missing, or a file is wrong.
    Takes 14 GB of memory and about a minute for a float16 SD1.4.
    """
    libraries = _import()
    found = resolve(source, variant)
    model = read_model(destination)
    if found.kind == "diffusers":
        gated = adapter is None and model.config.unet.grounding is not None
        theirs = _from_folder(found.path, variant, libraries, gated=gated)
        if adapter is not None:
            theirs["unet"] = _add_adapter(theirs["unet"], resolve(adapter).path, libraries)
    elif found.kind in ("original", "ldm"):
        theirs = _from_single_file(found.path, found.kind, adapter, model.config, libraries)
    else:
        raise ValueError(
            f"{source} is of the kind {found.kind!r}, which is not converted by itself"
        )
    checks = {"unet": _unet_error, "vae": _vae_error, "text_encoder": _text_error}
    errors = {}
    with libraries.torch.inference_mode():
        for name in NETWORKS:
            reference = _rounded(theirs.pop(name), model.info.get("dtype"), libraries)
            errors[name] = checks[name](reference, model, libraries.torch)
    return errors


def _import() -> SimpleNamespace:
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


def _from_folder(
    folder: Path, variant: str | None, libraries: SimpleNamespace, *, gated: bool
) -> dict[str, Any]:
    """The networks of a diffusers folder; gated: the U-Net has fusers, whatever field says so."""
    diffusers, transformers = libraries.diffusers, libraries.transformers

    def options(part: str) -> dict[str, Any]:
        # The loaders must be told of fp16; `convert` takes it where there is nothing else.
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

    A single file says nothing of its configuration, and neither says the number of the text
    encoder's heads: those are taken from `ours`. Loading is strict, which checks every shape.
    """
    if kind == "original":
        parts, fields = open_original(path)
        names = dict(zip(LDM_PREFIXES, ORIGINAL_PARTS, strict=False))
        state = {
            prefix + name: tensor
            for prefix, part in names.items()
            for name, tensor in _tensors(parts[part], libraries.torch).items()
        }
        config = _original_config(fields["model"]["params"], fields["autoencoder"]["params"])
    else:
        state = _tensors(open_tensors(path), libraries.torch)
        config = _original_config(*_ldm_params(ours))
    if adapter is not None:
        fusers = _tensors(open_tensors(resolve(adapter).path), libraries.torch)
        state |= {LDM_PREFIXES[0] + name: tensor for name, tensor in fusers.items()}
    return {
        "unet": _ldm_unet(state, config, libraries),
        "vae": _ldm_vae(state, config, libraries),
        "text_encoder": _ldm_text_encoder(state, ours.text_encoder, libraries),
    }


def _tensors(file: TensorFile, torch: Any) -> State:
    """float32; the bytes are read by our readers, which tests compare with torch's."""
    return {
        name: torch.from_numpy(np.array(file.read(name), np.float32, order="C"))
        for name in file.keys()
    }


def _original_config(unet: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    """The form of Stable Diffusion's YAML files, which diffusers' converters read."""
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
    prefix = LDM_PREFIXES[0]
    fields = libraries.ldm.create_unet_diffusers_config_from_ldm(config, state)
    # The YAML of an inpainting GLIGEN says 4; its mask and masked image come on top.
    fields["in_channels"] = state[f"{prefix}input_blocks.0.0.weight"].shape[1]
    if any(".fuser." in name for name in state):
        fields["attention_type"] = "gated"
    named = libraries.ldm.convert_ldm_unet_checkpoint(state, fields)
    named |= _position_net({name.removeprefix(prefix): state[name] for name in state})
    unet = libraries.diffusers.UNet2DConditionModel.from_config(fields)
    return _fill("unet", unet, named)


def _position_net(state: State) -> State:
    """It has the same names in both layouts, as diffusers' script for GLIGEN takes them."""
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
    """A U-Net of diffusers with the fusers and position net of an adapter file."""
    adapter = _tensors(open_tensors(path), libraries.torch)
    fields = dict(base.config) | {"attention_type": "gated"}
    # The converter goes through as many blocks as it counts, and an adapter has not all of them.
    last = max(int(n.split(".")[1]) for n in adapter if n.startswith(("input_", "output_")))
    blocks = [f"{half}put_blocks.{i}" for half in ("in", "out") for i in range(last + 1)]
    blocks += [f"middle_block.{i}" for i in range(3)]
    counted = dict.fromkeys(f"{block}.counted" for block in blocks)
    named = libraries.ldm.convert_ldm_unet_checkpoint(
        {LDM_PREFIXES[0] + name: tensor for name, tensor in (adapter | counted).items()}, fields
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
            f"the reference {name} cannot be filled from the source: {len(wrong)} tensors are "
            f"missing or unknown there, such as {wrong[0]}"
        )


def _rounded(model: Any, dtype: str | None, libraries: SimpleNamespace) -> Any:
    """float32, its weights rounded to the result's dtype; a mixed result was not rounded."""
    model = model.float().eval()
    if dtype in ("float16", "bfloat16"):
        for parameter in model.parameters():
            parameter.copy_(parameter.to(getattr(libraries.torch, dtype)))
    return model


def _run(model: Model, name: str, forward: Any, *args: Any) -> Any:
    """`forward(network, *args)` in NumPy arrays, on the first device."""
    program = _program(network(model.config, name)[0], forward)
    params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), model.params[name])
    with jax.default_matmul_precision("highest"):
        return jax.device_get(program(params, *args))


@functools.cache
def _program(graph: nnx.GraphDef, forward: Any) -> Any:
    options = compiler_options(jax.devices()[:1])
    if options:  # on CPU; for one call of a small size, fast code is not worth its compile time
        options = options | {"xla_backend_optimization_level": 0}

    def run(params: Any, *args: Any) -> Any:
        return forward(nnx.merge(graph, params), *args)

    return jax.jit(run, compiler_options=options)


def _attend() -> Any:
    return attention_for(jax.devices()[0].platform)


def _both_wirings(unet: Any, x: Any, text: Any, timesteps: Any, *grounding: Any) -> Any:
    def forward(wiring: Wiring) -> Any:
        prepared = unet.prepare(text, Grounding(*grounding), timesteps, wiring=wiring)
        return unet(x, prepared, gate=jnp.float32(1), wiring=wiring, attend=_attend())

    return forward("sequential"), forward("parallel")


def _unet_error(theirs: Any, model: Model, torch: Any) -> float:
    config, random = model.config.unet, np.random.default_rng(0)
    side, slots = 2 ** len(config.block_channels), 3  # 2 x 2 at the lowest level
    x = _normal(random, 2, side, side, config.in_channels)
    text = _normal(random, 2, model.config.text_encoder.tokenizer.max_length, config.text_width)
    timesteps = np.array([901.0, 42.0], np.float32)
    boxes = random.uniform(size=(2, slots, 4)).astype(np.float32)
    phrases = _normal(random, 2, slots, config.text_width)
    mask = np.array([[1, 0, 0], [1, 1, 1]], np.float32)
    gligen = {"boxes": boxes, "positive_embeddings": phrases, "masks": mask}
    gligen = {name: torch.from_numpy(array) for name, array in gligen.items()}

    def reference() -> np.ndarray:
        inputs = _nchw(x, torch), torch.from_numpy(timesteps), torch.from_numpy(text)
        return _nhwc(theirs(*inputs, cross_attention_kwargs={"gligen": gligen}).sample)

    sequential, parallel = _run(
        model, "unet", _both_wirings, x, text, timesteps, boxes, phrases, mask
    )
    error = _relative_error(sequential, reference())
    _rewire(theirs)
    return _largest([error, _relative_error(parallel, reference())])


def _rewire(unet: Any) -> None:
    """Gives every block of diffusers' U-Net the forward of the parallel wiring."""

    def forward(block, x, encoder_hidden_states, cross_attention_kwargs, **_):
        x = x + block.attn1(block.norm1(x))
        grounded = block.fuser(x, cross_attention_kwargs["gligen"]["objs"]) - x
        read = block.attn2(block.norm2(x), encoder_hidden_states=encoder_hidden_states)
        x = x + grounded + read
        return x + block.ff(block.norm3(x))

    for module in unet.modules():
        if hasattr(module, "fuser"):
            module.forward = forward.__get__(module)


def _both_ways(vae: Any, images: Any, latents: Any) -> Any:
    attend = _attend()
    return *vae.moments(images, attend=attend), vae.decode(latents, attend=attend)


def _vae_error(theirs: Any, model: Model, torch: Any) -> float:
    config, random = model.config.vae, np.random.default_rng(1)
    side = 4  # of the latents
    latents = _normal(random, 2, side, side, config.latent_channels)
    pixels = side * config.downsampling
    images = random.uniform(-1, 1, (2, pixels, pixels, config.image_channels)).astype(np.float32)
    ours = _run(model, "vae", _both_ways, images, latents)
    posterior = theirs.encode(_nchw(images, torch)).latent_dist
    decoded = theirs.decode(_nchw(latents, torch) / theirs.config.scaling_factor).sample
    pairs = zip(ours, (posterior.mean, posterior.logvar, decoded), strict=True)
    return _largest([_relative_error(a, _nhwc(b)) for a, b in pairs])


def _encode(encoder: Any, ids: Any) -> Any:
    return encoder(ids)


def _text_error(theirs: Any, model: Model, torch: Any) -> float:
    config, random = model.config.text_encoder, np.random.default_rng(2)
    tokens = config.tokenizer
    special = (tokens.bos_token_id, tokens.eos_token_id, tokens.pad_token_id)
    words = np.setdiff1d(np.arange(config.network.vocab_size), special)
    ids = np.full((2, tokens.max_length), tokens.pad_token_id, np.int32)
    for row, length in zip(ids, (tokens.max_length // 3, tokens.max_length), strict=True):
        row[0], row[length - 1] = tokens.bos_token_id, tokens.eos_token_id
        row[1 : length - 1] = random.choice(words, length - 2)
    ours = _run(model, "text_encoder", _encode, ids)
    out = theirs(torch.from_numpy(ids).long())
    pairs = (ours.hidden, out.last_hidden_state), (ours.pooled, out.pooler_output)
    return _largest([_relative_error(a, b.numpy()) for a, b in pairs])


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def _nchw(array: np.ndarray, torch: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _nhwc(tensor: Any) -> np.ndarray:
    return tensor.numpy().transpose(0, 2, 3, 1)


def _relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _largest(errors: list[float]) -> float:
    return float(np.max(errors))  # unlike `max`, NaN if any of them is

"""Maps names of the original (LDM / CompVis) layout to diffusers names, by tables from the config.

Used for the original GLIGEN pickle, for its adapter-only files, and for single-file SD1.x.
"""

import functools
from collections.abc import Iterable

from reground_jax.config import ModelConfig, UNetConfig, VAEConfig

# The prefix of each network's names in a single file.
LDM_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


@functools.cache
def unet_prefixes(config: UNetConfig) -> dict[str, str]:
    """LDM prefix to diffusers prefix, for every module of the U-Net."""
    table = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.1": "mid_block.attentions.0",
        "position_net": "position_net",
        "downsample_net": "downsample_net",
    }

    def resnet(ldm: str, diffusers: str) -> None:
        table.update({f"{ldm}.{ours}": f"{diffusers}.{theirs}" for ours, theirs in RESNET.items()})

    resnet("middle_block.0", "mid_block.resnets.0")
    resnet("middle_block.2", "mid_block.resnets.1")
    entry = {"down": 1, "up": 0}  # next index in input_blocks (0 is conv_in) and output_blocks
    for level in config.levels():
        if level.part == "mid":
            continue
        ldm = "input_blocks" if level.part == "down" else "output_blocks"
        diffusers = f"{level.part}_blocks.{level.index}"
        for layer in range(len(level.inputs)):
            place = f"{ldm}.{entry[level.part] + layer}"
            resnet(f"{place}.0", f"{diffusers}.resnets.{layer}")
            if layer < level.attentions:
                table[f"{place}.1"] = f"{diffusers}.attentions.{layer}"
        entry[level.part] += len(level.inputs)
        if level.resamples and level.part == "down":  # has its own entry
            table[f"{ldm}.{entry['down']}.0.op"] = f"{diffusers}.downsamplers.0.conv"
            entry["down"] += 1
        elif level.resamples:  # in the level's last entry, after any attention
            place = f"{ldm}.{entry['up'] - 1}.{2 if level.attentions else 1}"
            table[f"{place}.conv"] = f"{diffusers}.upsamplers.0.conv"
    return table


@functools.cache
def vae_prefixes(config: VAEConfig) -> dict[str, str]:
    """LDM prefix to diffusers prefix, for every module of the autoencoder."""
    levels = len(config.block_channels)
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        table |= {
            f"{half}.conv_in": f"{half}.conv_in",
            f"{half}.conv_out": f"{half}.conv_out",
            f"{half}.norm_out": f"{half}.conv_norm_out",
            f"{half}.mid.block_1": f"{half}.mid_block.resnets.0",
            f"{half}.mid.block_2": f"{half}.mid_block.resnets.1",
        }
        table |= {
            f"{half}.mid.attn_1.{theirs}": f"{half}.mid_block.attentions.0.{ours}"
            for theirs, ours in VAE_ATTENTION.items()
        }
    for level in range(levels):
        up = levels - 1 - level  # decoder.up counts from the highest resolution
        down_sampler, up_sampler = f"down.{level}.downsample.conv", f"up.{level}.upsample.conv"
        table[f"encoder.{down_sampler}"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        table[f"decoder.{up_sampler}"] = f"decoder.up_blocks.{up}.upsamplers.0.conv"
        for half, ldm, diffusers, extra in (
            ("encoder", f"down.{level}", f"down_blocks.{level}", 0),
            ("decoder", f"up.{level}", f"up_blocks.{up}", 1),
        ):
            for layer in range(config.layers_per_block + extra):
                ldm_resnet = f"{half}.{ldm}.block.{layer}"
                resnet = f"{half}.{diffusers}.resnets.{layer}"
                table[ldm_resnet] = resnet
                table[f"{ldm_resnet}.nin_shortcut"] = f"{resnet}.conv_shortcut"
    return table


def translated(name: str, prefixes: dict[str, str]) -> str:
    """`name` with its longest known prefix translated, or unchanged if no prefix is known."""
    head = name
    while "." in head:
        head = head.rsplit(".", 1)[0]
        if head in prefixes:
            return prefixes[head] + name[len(head) :]
    return name


def original_names(network: str, names: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """The inverse of `rename`: diffusers names in the original layout, without network prefix."""
    if network == "text_encoder":
        return {name: f"transformer.text_model.{name}" for name in names}
    table = unet_prefixes(config.unet) if network == "unet" else vae_prefixes(config.vae)
    back = {theirs: ours for ours, theirs in table.items()}
    return {name: translated(name, back) for name in names}


def rename(network: str, name: str, config: ModelConfig) -> str:
    """The diffusers name of a tensor in the original layout, given without its network prefix."""
    if network == "unet":
        return translated(name, unet_prefixes(config.unet))
    if network == "vae":
        return translated(name, vae_prefixes(config.vae))
    return name

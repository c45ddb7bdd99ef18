"""Multiply-accumulates of the networks, counted from their configuration alone. 1 MAC is 2 FLOPs.

Counts are for one forward pass as the papers' code runs it, broken down by purpose, so that what a
program leaves out (parts that are the same at every step, fusers after gamma) can be subtracted by
name. Element-wise operations, norms and softmax are not counted.
"""

from collections import Counter

from reground_jax.config import CLIPTextConfig, UNetConfig, VAEConfig
from reground_jax.networks.grounding import KINDS

# Parts of a U-Net that are the same at every step (`UNet.prepare`), or whose result is discarded.
INVARIANT = ("text_kv", "grounding", "dead_queries", "time")
FUSER = ("fuser_projections", "fuser_scores", "fuser_feed_forward", "grounding", "dead_queries")
SCORES = ("self_scores", "cross_scores", "fuser_scores")


def conv(fan_in: int, fan_out: int, pixels: int, kernel: int = 3) -> int:
    return kernel * kernel * fan_in * fan_out * pixels


def unet_macs(
    config: UNetConfig,
    height: int,
    width: int,
    *,
    text_tokens: int = 77,
    max_boxes: int = 30,
    fusers: bool = True,
) -> Counter[str]:
    """MACs of one sample with a latent of `height` x `width`, by part. `fusers`: include them."""
    macs: Counter[str] = Counter()
    first, time_width = config.block_channels[0], 4 * config.block_channels[0]
    sizes = [(height, width)]
    for _ in config.block_channels[1:]:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    pixels = [h * w for h, w in sizes]

    macs["conv_in_out"] = conv(config.in_channels + config.out_channels, first, pixels[0])
    macs["time"] = first * time_width + time_width * time_width
    kind = config.grounding if fusers else None
    tokens = config.tokens(max_boxes)
    if kind is not None:
        macs["grounding"] = KINDS[kind].macs(config, tokens)
    for level in config.levels():
        area, c = pixels[level.depth], level.channels
        for fan_in in level.inputs:
            macs.update(resnet_macs(fan_in, c, area, time_width))
        for _ in range(level.attentions):
            macs["proj_in_out"] += 2 * area * c * c
            for _ in range(level.transformer_layers):
                macs.update(block_macs(c, area, text_tokens, config.text_width))
                if kind is not None:
                    macs.update(fuser_macs(c, area, tokens, config.text_width))
        if level.resamples:
            to = level.depth + (1 if level.part == "down" else -1)
            macs["resampling"] += conv(c, c, pixels[to])
    return macs


def resnet_macs(fan_in: int, fan_out: int, area: int, time_width: int) -> dict[str, int]:
    macs = {
        "resnets": conv(fan_in, fan_out, area) + conv(fan_out, fan_out, area),
        "time": time_width * fan_out,
    }
    if fan_in != fan_out:
        macs["shortcuts"] = conv(fan_in, fan_out, area, 1)
    return macs


def block_macs(c: int, area: int, text_tokens: int, text_width: int) -> dict[str, int]:
    """MACs of a transformer block without its fuser; `c` channels, `area` pixels."""
    return {
        "self_projections": 4 * area * c * c,
        "self_scores": 2 * area * area * c,
        "cross_projections": 2 * area * c * c,
        "cross_scores": 2 * area * text_tokens * c,
        "text_kv": 2 * text_tokens * text_width * c,
        "feed_forward": 12 * area * c * c,
    }


def fuser_macs(c: int, area: int, slots: int, text_width: int) -> dict[str, int]:
    """MACs of GLIGEN's fuser in such a block, with `slots` grounding tokens."""
    return {
        "fuser_projections": 4 * area * c * c,
        "fuser_scores": 2 * area * (area + slots) * c,
        "fuser_feed_forward": 12 * area * c * c,
        "grounding": slots * text_width * c + 2 * slots * c * c,
        "dead_queries": 2 * slots * c * c + 2 * slots * (area + slots) * c,
    }


def step_macs(
    config: UNetConfig,
    *,
    size: tuple[int, int] | None = None,
    grounded: bool = True,
    guided: bool = True,
    max_boxes: int = 30,
) -> int:
    """MACs of one evaluation, without what `run_macs` counts once.

    size: rows and columns of the latents, by default the model's own.
    """
    height, width = size or (config.sample_size,) * 2
    one, none = (
        run_macs(
            config, height, width, num_steps=steps, grounded_steps=steps * grounded, guided=guided,
            max_boxes=max_boxes,
        )
        for steps in (1, 0)
    )  # fmt: skip
    return one - none


def vae_decoder_macs(config: VAEConfig, height: int, width: int) -> int:
    """MACs of decoding one latent of `height` x `width`."""
    channels, latent = config.block_channels[::-1], config.latent_channels
    area, deepest = height * width, channels[0]
    total = conv(latent, latent, area, 1) + conv(latent, deepest, area)
    total += 4 * conv(deepest, deepest, area)  # two resnets of the middle
    total += 4 * area * deepest * deepest + 2 * area * area * deepest  # and its attention
    below = deepest
    for level, c in enumerate(channels):
        for _ in range(config.layers_per_block + 1):
            total += conv(below, c, area) + conv(c, c, area)
            total += conv(below, c, area, 1) if below != c else 0
            below = c
        if level < len(channels) - 1:
            area *= 4
            total += conv(c, c, area)
    return total + conv(channels[-1], config.image_channels, area)


def vae_encoder_macs(config: VAEConfig, height: int, width: int) -> int:
    """MACs of encoding an image to a latent of `height` x `width`."""
    channels, latent = config.block_channels, config.latent_channels
    area, deepest = height * width * config.downsampling**2, channels[-1]
    total = conv(config.image_channels, channels[0], area)
    below = channels[0]
    for level, c in enumerate(channels):
        for _ in range(config.layers_per_block):
            total += conv(below, c, area) + conv(c, c, area)
            total += conv(below, c, area, 1) if below != c else 0
            below = c
        if level < len(channels) - 1:
            area //= 4
            total += conv(c, c, area)
    total += 4 * conv(deepest, deepest, area)  # two resnets of the middle
    total += 4 * area * deepest * deepest + 2 * area * area * deepest  # and its attention
    return total + conv(deepest, 2 * latent, area) + conv(2 * latent, 2 * latent, area, 1)


def text_encoder_macs(config: CLIPTextConfig) -> int:
    """MACs of one text of the maximum length."""
    tokens, width = config.max_length, config.width
    layer = 4 * width * width + 2 * width * config.mlp_width + 2 * tokens * width
    return config.num_layers * tokens * layer


def run_macs(
    config: UNetConfig,
    height: int,
    width: int,
    *,
    num_steps: int,
    grounded_steps: int,
    guided: bool = True,
    max_boxes: int = 30,
) -> int:
    """MACs of the U-Net over a whole run in this package.

    Counts fusers only in the grounded steps, what is the same at every step once, and no dead
    queries.
    """
    on = unet_macs(config, height, width, max_boxes=max_boxes)
    off = unet_macs(config, height, width, fusers=False)
    once = sum(on[part] for part in INVARIANT if part != "dead_queries")
    step_on, step_off = (
        sum(count for part, count in macs.items() if part not in INVARIANT) for macs in (on, off)
    )
    branches = 2 if guided else 1
    steps = grounded_steps * step_on + (num_steps - grounded_steps) * step_off
    return branches * (once + steps)

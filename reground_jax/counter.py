"""Multiply-accumulates of the networks, counted from their configuration alone. 1 MAC is 2 FLOP.

Counts are of one forward pass as the papers' code runs it, split by what the work is for, so that
what a program leaves out (parts that no step changes, fusers after gamma) can be taken off by name.
Element-wise work, norms and softmax are not counted.
"""

from collections import Counter

from reground_jax.config import UNetConfig, VAEConfig
from reground_jax.networks.position_net import FOURIER_WIDTH, HIDDEN

# Parts of a U-Net that no step changes, or whose result is thrown away (`UNet.prepare`).
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
    grounding_tokens: int = 30,
    fusers: bool = True,
) -> Counter[str]:
    """MACs of one sample at a latent of `height` x `width`, by part. `fusers`: run with them."""
    macs: Counter[str] = Counter()
    channels, text_width = config.block_channels, config.text_width
    levels, time_width = len(channels), 4 * channels[0]
    sizes = [(height, width)]
    for _ in range(levels - 1):
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))  # type: ignore[arg-type]
    pixels = [h * w for h, w in sizes]
    fusers = fusers and config.grounded

    def resnet(fan_in: int, fan_out: int, area: int) -> None:
        macs["resnets"] += conv(fan_in, fan_out, area) + conv(fan_out, fan_out, area)
        macs["time"] += time_width * fan_out
        if fan_in != fan_out:
            macs["shortcuts"] += conv(fan_in, fan_out, area, 1)

    def transformer(c: int, area: int) -> None:
        macs["proj_in_out"] += 2 * area * c * c
        macs["self_projections"] += 4 * area * c * c
        macs["self_scores"] += 2 * area * area * c
        macs["cross_projections"] += 2 * area * c * c
        macs["cross_scores"] += 2 * area * text_tokens * c
        macs["text_kv"] += 2 * text_tokens * text_width * c
        macs["feed_forward"] += 12 * area * c * c
        if fusers:
            g = grounding_tokens
            macs["fuser_projections"] += 4 * area * c * c
            macs["fuser_scores"] += 2 * area * (area + g) * c
            macs["fuser_feed_forward"] += 12 * area * c * c
            macs["grounding"] += g * text_width * c + 2 * g * c * c
            macs["dead_queries"] += 2 * g * c * c + 2 * g * (area + g) * c

    macs["conv_in_out"] += conv(config.in_channels, channels[0], pixels[0])
    macs["conv_in_out"] += conv(channels[0], config.out_channels, pixels[0])
    macs["time"] += channels[0] * time_width + time_width * time_width
    if fusers:
        net = (text_width + FOURIER_WIDTH) * HIDDEN + HIDDEN * HIDDEN + HIDDEN * text_width
        macs["grounding"] += grounding_tokens * net

    skips = [channels[0]]
    for level, c in enumerate(channels):
        for _ in range(config.layers_per_block[level]):
            resnet(skips[-1], c, pixels[level])
            if config.down_attention[level]:
                transformer(c, pixels[level])
            skips.append(c)
        if level < levels - 1:
            macs["resampling"] += conv(c, c, pixels[level + 1])
            skips.append(c)
    for _ in range(2):
        resnet(channels[-1], channels[-1], pixels[-1])
    transformer(channels[-1], pixels[-1])
    below = channels[-1]
    for up, level in enumerate(reversed(range(levels))):
        c = channels[level]
        for _ in range(config.layers_per_block[level] + 1):
            resnet(below + skips.pop(), c, pixels[level])
            if config.up_attention[up]:
                transformer(c, pixels[level])
            below = c
        if level > 0:
            macs["resampling"] += conv(c, c, pixels[level - 1])
    return macs


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
    """MACs of the U-Net over a whole run as this package needs it: fusers in the grounded steps
    only, what no step changes once, nothing for dead queries."""
    on = unet_macs(config, height, width, grounding_tokens=max_boxes)
    off = unet_macs(config, height, width, fusers=False)
    once = sum(on[part] for part in INVARIANT if part != "dead_queries")
    step_on, step_off = (
        sum(count for part, count in macs.items() if part not in INVARIANT) for macs in (on, off)
    )
    branches = 2 if guided else 1
    steps = grounded_steps * step_on + (num_steps - grounded_steps) * step_off
    return branches * (once + steps)

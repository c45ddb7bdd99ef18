"""GLIGEN's position nets and down-samplers in PyTorch: the reference for ours.

diffusers has those of "text" and "text_image"; no package has the others. Sources: GLIGEN's
`keypoint_grounding_net.py`, `{hed,canny,depth,normal,sem}_grounding_net.py` and
`..._grounding_downsampler.py`, whose names the parameters keep. The ConvNeXt is transformers'.
"""

import re
from types import SimpleNamespace
from typing import Any

from reground_jax.config import MapConfig, UNetConfig
from reground_jax.kinds import GroundingKind

HIDDEN, FREQUENCIES, JOINTS = 512, 8, 17
# Networks of the U-Net that GLIGEN's and diffusers' layouts name alike.
NETWORKS = ("position_net.", "downsample_net.")
# What diffusers' position nets call the fields of our Grounding; those here take our names.
ARGUMENTS: dict[GroundingKind, dict[str, str]] = {
    "text": {"mask": "masks", "phrases": "positive_embeddings"},
    "text_image": {
        "mask": "masks",
        "phrases": "phrases_embeddings",
        "phrase_weights": "phrases_masks",
        "images": "image_embeddings",
        "image_weights": "image_masks",
    },
}
BACKBONE = "position_net.convnext_tiny_backbone."
# GLIGEN's names of a ConvNeXt to transformers'.
CONVNEXT = (
    (r"^downsample_layers\.0\.0\.", "embeddings.patch_embeddings."),
    (r"^downsample_layers\.0\.1\.", "embeddings.layernorm."),
    (r"^downsample_layers\.(\d+)\.", r"encoder.stages.\1.downsampling_layer."),
    (r"^stages\.(\d+)\.(\d+)\.", r"encoder.stages.\1.layers.\2."),
    (r"\.norm\.", ".layernorm."),
    (r"\.gamma$", ".layer_scale_parameter"),
)


def attention_type(kind: GroundingKind) -> str:
    """diffusers' name of a kind; it has no others than these two."""
    return "gated-text-image" if kind == "text_image" else "gated"


def add_grounding(unet: Any, config: UNetConfig, libraries: SimpleNamespace) -> None:
    """Gives diffusers' U-Net the networks of a kind that diffusers does not have."""
    if config.map is not None:
        unet.position_net = _map_net(config.map, config.text_width, libraries)
        unet.downsample_net = _downsampler(config, config.map, libraries.torch)
    elif config.grounding == "keypoint":
        unet.position_net = _keypoint_net(config, libraries.torch)


def grounding_names(state: dict[str, Any]) -> dict[str, Any]:
    """The position net and the down-sampler in a state dict, by their names in PyTorch here."""
    return {_named(name): tensor for name, tensor in state.items() if name.startswith(NETWORKS)}


def _named(name: str) -> str:
    if not name.startswith(BACKBONE):
        return name
    inner = name.removeprefix(BACKBONE)
    for pattern, replacement in CONVNEXT:
        inner = re.sub(pattern, replacement, inner)
    return BACKBONE + inner


def _keypoint_net(config: UNetConfig, torch: Any) -> Any:
    net, width, waves = torch.nn.Module(), config.text_width, 2 * 2 * FREQUENCIES
    net.linears = _mlp(width + waves, width, torch)
    net.person_embeddings = _parameter(torch, config.persons, width)
    net.keypoint_embeddings = _parameter(torch, JOINTS, width)
    net.null_person_feature = _parameter(torch, width)
    net.null_xy_feature = _parameter(torch, waves)

    def forward(points: Any, mask: Any) -> Any:
        persons = net.person_embeddings.repeat_interleave(JOINTS, dim=0)
        who = persons + net.keypoint_embeddings.repeat(config.persons, 1)
        frequencies = 100 ** (torch.arange(FREQUENCIES) / FREQUENCIES)
        angles = points.unsqueeze(-2) * frequencies[:, None]  # [B, G, 8, 2]
        where = torch.stack((angles.sin(), angles.cos()), dim=-2).flatten(-3)
        mask = mask.unsqueeze(-1)
        who = who * mask + net.null_person_feature * (1 - mask)
        where = where * mask + net.null_xy_feature * (1 - mask)
        return net.linears(torch.cat([who, where], dim=-1))

    net.forward = forward
    return net


def _map_net(own: MapConfig, width: int, libraries: SimpleNamespace) -> Any:
    torch, inner = libraries.torch, own.widths[-1]
    net = torch.nn.Module()
    if own.classes is not None:
        net.in_conv = torch.nn.Conv2d(own.classes, 3, 3, padding=1)
    net.convnext_tiny_backbone = _convnext(own, libraries.transformers, torch)
    net.pos_embedding = _parameter(torch, 1, own.tokens, inner)
    net.null_feature = _parameter(torch, inner)
    net.linears = _mlp(inner, width, torch)

    def forward(map: Any, mask: Any) -> Any:
        image = _image(map, own.classes, torch)
        image = torch.nn.functional.interpolate(image, (own.side, own.side), mode="nearest")
        image = image if own.classes is None else net.in_conv(image)
        features = net.convnext_tiny_backbone(image).last_hidden_state
        features = features.flatten(2).transpose(1, 2)
        mask = mask[:, None, None]
        features = features * mask + net.null_feature * (1 - mask)
        return net.linears(features + net.pos_embedding)

    net.forward = forward
    return net


def _convnext(own: MapConfig, transformers: Any, torch: Any) -> Any:
    config = transformers.ConvNextConfig(
        num_channels=3, patch_size=4, num_stages=len(own.widths), hidden_sizes=list(own.widths),
        depths=list(own.depths), hidden_act="gelu",
    )  # fmt: skip
    model = transformers.ConvNextModel(config)
    model.layernorm = torch.nn.Identity()  # of the pooled output, which GLIGEN does not have
    return model


def _downsampler(config: UNetConfig, own: MapConfig, torch: Any) -> Any:
    """Called with a map and the size of the latents."""
    net, nn = torch.nn.Module(), torch.nn
    inputs = own.classes or (3 if config.grounding == "normal" else 1)
    if own.downsampler:
        first, second = own.downsampler
        net.layers = nn.Sequential(
            nn.Conv2d(inputs, first, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
        )

    def forward(map: Any, size: tuple[int, int]) -> Any:
        image = _image(map, own.classes, torch)[:, :inputs]
        mode = "bicubic" if own.classes is None else "nearest"
        if not own.downsampler:
            return nn.functional.interpolate(image, size, mode=mode)
        height, width = size
        image = nn.functional.interpolate(image, (4 * height, 4 * width), mode=mode)
        return net.layers(image)

    net.forward = forward
    return net


def _image(map: Any, classes: int | None, torch: Any) -> Any:
    """Bytes, channels last, as GLIGEN reads them: -1..1, or one-hot classes; channels first."""
    if classes is not None:
        return torch.nn.functional.one_hot(map.long(), classes).permute(0, 3, 1, 2).float()
    return (map.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def _mlp(fan_in: int, width: int, torch: Any) -> Any:
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(fan_in, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(),
        nn.Linear(HIDDEN, width),
    )  # fmt: skip


def _parameter(torch: Any, *shape: int) -> Any:
    return torch.nn.Parameter(torch.empty(shape))

"""Tiny PyTorch models that no one here wrote, with every leaf random; and the formula of ReGround.

At diffusers' own initialisation gates and null features are 0 and norm scales 1, which would prove
nothing about fusers.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from transformers import CLIPTextConfig, CLIPTextModel

SD1 = dict(
    sample_size=8,
    block_out_channels=(32, 64, 64),
    layers_per_block=2,
    attention_head_dim=4,  # the number of heads, as in SD1.x files
    cross_attention_dim=24,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    norm_num_groups=8,
    attention_type="gated",
)
SD2 = SD1 | dict(
    attention_head_dim=[2, 4, 8], use_linear_projection=True, cross_attention_dim=32,
    upcast_attention=True,
)  # fmt: skip
INPAINT = SD1 | dict(in_channels=9, layers_per_block=1)
ODD = dict(
    sample_size=6,
    in_channels=6,
    out_channels=6,
    block_out_channels=(20, 60),
    layers_per_block=(1, 2),
    attention_head_dim=[2, 3],
    cross_attention_dim=20,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    norm_num_groups=5,
    attention_type="gated",
)
UNETS = {"sd1": SD1, "sd2": SD2, "inpaint": INPAINT, "odd": ODD}

VAE = dict(
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=64,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
VAES = {
    "sd1": VAE,
    "sd2": VAE | dict(layers_per_block=2),
    "inpaint": VAE,
    "odd": VAE
    | dict(
        latent_channels=6,
        block_out_channels=(20, 40),
        norm_num_groups=5,
        scaling_factor=0.3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
}

TEXT = dict(
    vocab_size=1000,
    hidden_size=24,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    bos_token_id=998,
    eos_token_id=999,
    pad_token_id=999,
)
TEXTS = {
    "sd1": TEXT,
    "sd2": TEXT | dict(hidden_size=32, hidden_act="gelu", pad_token_id=0),
    "inpaint": TEXT,
    "odd": TEXT | dict(hidden_size=20, eos_token_id=2),  # 2: read at the largest id
}


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter and float buffer random and of a useful size, none at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and "embedding.weight" not in name:
                noise /= parameter[0].numel() ** 0.5
            elif "norm" in name and name.endswith("weight"):
                noise = 1 + 0.2 * noise
            elif name.endswith("bias"):
                noise *= 0.2
            elif "alpha" in name:
                noise = 0.7 + 0.3 * noise
            parameter.copy_(noise)
    return model.eval()


def unet(name: str, **changes) -> UNet2DConditionModel:
    return randomise(UNet2DConditionModel(**(UNETS[name] | changes)))


def vae(name: str, **changes) -> AutoencoderKL:
    return randomise(AutoencoderKL(**(VAES[name] | changes)), seed=1)


def text_encoder(name: str, **changes) -> CLIPTextModel:
    return randomise(CLIPTextModel(CLIPTextConfig(**(TEXTS[name] | changes))), seed=2)


def rewire(model: UNet2DConditionModel, wiring: str) -> None:
    """Replaces the forward of every block of `model` by the formulas of the papers."""

    def forward(self, x, attention_mask=None, encoder_hidden_states=None, timestep=None,
                cross_attention_kwargs=None, **_):  # fmt: skip
        tokens = (cross_attention_kwargs or {}).get("gligen", {}).get("objs")

        def gsa(h):
            return self.fuser(h, tokens) - h

        def ca(h):
            return self.attn2(self.norm2(h), encoder_hidden_states=encoder_hidden_states)

        x = x + self.attn1(self.norm1(x))
        if wiring == "parallel":
            x = x + gsa(x) + ca(x)
        elif wiring == "text_first":
            x = x + ca(x)
            x = x + gsa(x)
        elif wiring == "no_text":
            x = x + gsa(x)
        elif wiring == "no_grounding":
            x = x + ca(x)
        elif wiring == "sequential":
            x = x + gsa(x)
            x = x + ca(x)
        return x + self.ff(self.norm3(x))

    for module in model.modules():
        if isinstance(module, BasicTransformerBlock):
            module.forward = forward.__get__(module)


def relative_error(ours, theirs) -> float:
    """max |a - b| / max |b|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)

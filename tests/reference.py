"""Tiny PyTorch models that no one here wrote, with every leaf random.

At diffusers' own initialization gates and null features are 0 and norm scales 1, which would prove
nothing about fusers.
"""

import gzip
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionGLIGENPipeline, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

DATA = Path(__file__).parent / "data"

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
SMALL = SD1 | dict(  # for what is around the U-Net: fewer blocks compile sooner
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
INPAINT = SD1 | dict(in_channels=9, layers_per_block=1)
ODD = dict(
    sample_size=6,
    in_channels=6,
    out_channels=6,
    block_out_channels=(20, 60),
    layers_per_block=(1, 2),
    attention_head_dim=[2, 3],
    transformer_layers_per_block=[1, 2],
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
    "small": VAE,
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
    "small": TEXT,
    "sd2": TEXT | dict(hidden_size=32, hidden_act="gelu", pad_token_id=0),
    "inpaint": TEXT,
    "odd": TEXT | dict(hidden_size=20, eos_token_id=2),  # 2: read at the largest id
}

VISIONS = {
    "b32": dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        patch_size=8, image_size=32, projection_dim=20,
    ),
    "l14": dict(
        hidden_size=40, intermediate_size=80, num_hidden_layers=3, num_attention_heads=5,
        patch_size=7, image_size=28, projection_dim=24,
    ),
}  # fmt: skip


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
    return randomise(UNet2DConditionModel(**((UNETS | {"small": SMALL})[name] | changes)))


def vae(name: str, **changes) -> AutoencoderKL:
    return randomise(AutoencoderKL(**(VAES[name] | changes)), seed=1)


def text_encoder(name: str, **changes) -> CLIPTextModel:
    return randomise(CLIPTextModel(CLIPTextConfig(**(TEXTS[name] | changes))), seed=2)


def image_encoder(name: str, **changes) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(**(VISIONS[name] | changes))
    return randomise(CLIPVisionModelWithProjection(config), seed=3)


def clip_model(name: str, **changes) -> CLIPModel:
    """A full CLIP, whose text transformer is as wide as its projection."""
    vision = VISIONS[name] | changes
    width = vision["projection_dim"]
    text = TEXT | dict(hidden_size=width, projection_dim=width)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    return randomise(CLIPModel(config), seed=4)


def relative_error(ours, theirs) -> float:
    """max |a - b| / max |b|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def byte_symbols() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes, in the order of its vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def small_vocabulary() -> tuple[dict[str, int], list[str]]:
    """CLIP's vocabulary cut to 1000: bytes, bytes that end a word, 486 merges, two specials."""
    with gzip.open(DATA / "clip" / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = [line.rstrip("\n") for line in file][1:487]
    symbols = byte_symbols()
    tokens = symbols + [s + "</w>" for s in symbols] + [m.replace(" ", "") for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, merges


def write_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """vocab.json and merges.txt, as on the Hub; returns transformers' own tokenizer of them."""
    vocabulary, merges = small_vocabulary()
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", "pad_token": pad,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77} | special)
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77, **special)


SD14_SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SD2_SCHEDULER = SD14_SCHEDULER | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}


def write_diffusers(
    folder: Path, name: str, *, form: str = "today", scheduler: dict | None = None, **unet_changes
) -> StableDiffusionGLIGENPipeline:
    """A diffusers model on disk, and diffusers' pipeline of the same weights.

    form: "today" as diffusers and transformers save now; "hub" as the old repositories are:
    pickles, the text encoder's prefix and position_ids, and the VAE's old attention names.
    """
    parts = {
        "unet": unet(name, **unet_changes),
        "vae": vae(name),
        "text_encoder": text_encoder(name),
    }
    tokenizer = write_tokenizer(
        folder / "tokenizer", pad="!" if TEXTS[name].get("pad_token_id") == 0 else "<|endoftext|>"
    )
    scheduler = scheduler or (SD2_SCHEDULER if name == "sd2" else SD14_SCHEDULER)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for part, model in parts.items():
        model.save_pretrained(folder / part)
    if form == "hub":
        for part, model in parts.items():
            (folder / part / PICKLE[part]).parent.mkdir(exist_ok=True)
            for file in (folder / part).glob("*.safetensors"):
                file.unlink()
            torch.save(hub_names(part, model.state_dict()), folder / part / PICKLE[part])
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return StableDiffusionGLIGENPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=getattr(diffusers, scheduler["_class_name"]).from_config(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


PICKLE = {
    "unet": "diffusion_pytorch_model.bin",
    "vae": "diffusion_pytorch_model.bin",
    "text_encoder": "pytorch_model.bin",
}


def hub_names(part: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that the old repositories on the Hub have for these tensors."""
    if part == "text_encoder":
        state = {"text_model." + k.removeprefix("text_model."): v for k, v in state.items()}
        return state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    if part == "vae":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, former in old.items():
            state = {k.replace(f".{new}.", f".{former}."): v for k, v in state.items()}
    return state

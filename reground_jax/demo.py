"""`make demo`: a tiny random checkpoint in diffusers' form, converted, and images from a layout.

Its weights are random, so its pictures are noise: it shows that everything is installed and works.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from reground_jax.cli import main as command
from reground_jax.config import CLIPTextConfig, ModelConfig, UNetConfig, VAEConfig
from reground_jax.convert.keys import Leaf, torch_names
from reground_jax.model import leaf_shapes

UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 16, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [32, 64], "layers_per_block": 1, "attention_head_dim": 4,
    "cross_attention_dim": 32, "norm_num_groups": 8, "attention_type": "gated",
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [16, 16, 16, 16],
    "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 128,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": 515,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "bos_token_id": 513,
    "eos_token_id": 514, "pad_token_id": 514,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "beta_end": 0.012, "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True,
}  # fmt: skip
CONFIG = ModelConfig(
    unet=UNetConfig(
        block_channels=(32, 64), layers_per_block=(1, 1), num_heads=(4, 4), text_width=32,
        down_attention=(True, False), up_attention=(False, True), norm_groups=8, sample_size=16,
    ),
    vae=VAEConfig(block_channels=(16, 16, 16, 16), layers_per_block=1, norm_groups=4),
    text_encoder=CLIPTextConfig(
        vocab_size=515, width=32, num_layers=2, num_heads=4, mlp_width=64, eos_token_id=514
    ),
)  # fmt: skip
PROMPT = "a teddy bear sitting next to a bird"  # a layout of GPT-4's, as published with LayoutGPT
BOXES = ["a teddy bear@0,0.09,0.33,0.76", "a bird@0.55,0.11,1,0.8"]


def write_random_checkpoint(folder: Path, seed: int = 0) -> None:
    """A diffusers folder of a tiny GLIGEN with random weights, in safetensors."""
    random = np.random.default_rng(seed)
    tensors: dict[str, dict[str, np.ndarray]] = {}
    for path, shape in leaf_shapes(CONFIG).items():
        leaf = Leaf(path, torch_names(path), shape)
        size = min(leaf.source_shapes(), key=len)
        for name in leaf.sources:
            scale = 1 / np.sqrt(max(1, np.prod(size[1:]))) if len(size) > 1 else 0.5
            values = random.standard_normal(size, dtype=np.float32) * np.float32(scale)
            tensors.setdefault(path.split("/")[0], {})[name] = values
    configs = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}
    files = dict.fromkeys(configs, "diffusion_pytorch_model") | {"text_encoder": "model"}
    for part, config in configs.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        write_safetensors(folder / part / f"{files[part]}.safetensors", tensors[part])
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    write_tokenizer(folder / "tokenizer")


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Float32 arrays in the safetensors format: length of the header, header, data."""
    header, offset = {}, 0
    for name, array in tensors.items():
        ends = [offset, offset := offset + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": ends}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.tobytes())


def write_tokenizer(folder: Path) -> None:
    """CLIP's form of vocabulary with the bytes alone, one merge and the two special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(byte) for byte in printable] + [
        chr(256 + i) for i in range(256 - len(printable))
    ]
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    tokens += ["th", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")


def run(out: Path) -> int:
    shutil.rmtree(out, ignore_errors=True)
    source, model, picture = out / "diffusers", out / "model", out / "compare.png"
    write_random_checkpoint(source)
    print(
        "The weights of this demo are random: its pictures are noise, in the right places only by"
    )
    print(
        "chance. Convert a real checkpoint for real ones: reground-jax convert --help\n", flush=True
    )
    boxes = [part for box in BOXES for part in ("--box", box)]
    steps = ["--steps", "10", "--model", str(model)]
    for arguments in (
        ["convert", str(source), str(model)],
        ["info", str(model)],
        ["generate", PROMPT, *boxes, *steps, "--out", str(out / "image.png")],
        ["compare", PROMPT, *boxes, *steps, "--seeds", "0,1", "--out", str(picture)],
    ):
        print("$ reground-jax", " ".join(arguments), flush=True)
        if code := command(arguments):
            return code
    print(f"\nThe comparison picture is {picture.resolve()}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    raise SystemExit(run(parser.parse_args().out))

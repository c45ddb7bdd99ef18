"""Conversion streams: its peak memory on a file of more than 1 GB. By hand:

pytest -m slow -s tests/test_convert_memory.py      (a minute, 6 GB of disk)
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reground_jax.config import (
    CLIPTextConfig,
    ModelConfig,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from reground_jax.convert.keys import Leaf, torch_names
from reground_jax.model import leaf_shapes
from tests import reference

ROOT = Path(__file__).parent.parent
# SD1.x at 0.7 of its width: a U-Net of 1.05 GB in float16. The other parts are small.
CONFIG = ModelConfig(
    unet=UNetConfig(block_channels=(224, 448, 896, 896)),
    vae=VAEConfig(block_channels=(32, 32), layers_per_block=1),
    text_encoders=(TextEncoderConfig(CLIPTextConfig(1000, num_layers=1, eos_token_id=999)),),
)
CONFIGS = {
    "unet": dict(
        _class_name="UNet2DConditionModel",
        block_out_channels=CONFIG.unet.block_channels,
        cross_attention_dim=768,
        attention_type="gated",
    ),
    "vae": dict(
        _class_name="AutoencoderKL",
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "text_encoder": dict(
        vocab_size=1000,
        hidden_size=768,
        num_hidden_layers=1,
        num_attention_heads=12,
        intermediate_size=3072,
        eos_token_id=999,
    ),
}
# The kernel's own high-water mark: ru_maxrss would start from the forking process's.
CONVERT = """
import json, sys, time
from reground_jax.convert.conversion import convert
begin = time.perf_counter()
info = convert(sys.argv[1], sys.argv[2], dtype=sys.argv[3])
seconds = time.perf_counter() - begin
status = dict(line.split(":") for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"seconds": seconds, "peak": peak, "bytes": info["bytes"]}))
"""


def write_large(folder: Path) -> int:
    """A diffusers folder of random float16, written piece by piece; returns its arrays' bytes.

    Names and shapes are from our own key table: here only the sizes matter.
    """
    shapes: dict[str, dict[str, tuple[int, ...]]] = {part: {} for part in CONFIGS}
    for path, shape in leaf_shapes(CONFIG).items():
        leaf = Leaf(path, torch_names(path), shape)
        for name in leaf.sources:
            shapes[path.split("/")[0]][name] = min(leaf.source_shapes(), key=len)
    noise = np.random.default_rng(0).standard_normal(2**24, np.float32).astype(np.float16).tobytes()
    total = 0
    for part, config in CONFIGS.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        header, end = {}, 0
        for name, shape in shapes[part].items():
            begin, end = end, end + 2 * math.prod(shape)  # two bytes per number
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        with open(folder / part / f"{stem}.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for at in range(0, end, len(noise)):
                file.write(noise[: end - at])
        total += end
    (folder / "scheduler").mkdir()
    scheduler = json.dumps(reference.SD14_SCHEDULER)
    (folder / "scheduler" / "scheduler_config.json").write_text(scheduler)
    reference.write_tokenizer(folder / "tokenizer")
    return total


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A source and its array bytes; removed at once, as pytest would keep gigabytes for days."""
    folder = tmp_path_factory.mktemp("large")
    yield folder / "source", write_large(folder / "source")
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_converting_a_gigabyte_stays_below_the_promised_memory(large, dtype):
    source, source_bytes = large
    destination = source.parent / dtype
    assert (source / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size > 10**9
    result = subprocess.run(
        [sys.executable, "-c", CONVERT, str(source), str(destination), dtype],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    facts = json.loads(result.stdout.splitlines()[-1])
    larger = max(source_bytes, facts["bytes"])
    print(
        f"\n{source_bytes / 1e9:.2f} GB to {facts['bytes'] / 1e9:.2f} GB of {dtype}: "
        f"peak memory {facts['peak'] / 1e9:.2f} GB, {facts['seconds']:.1f} s"
    )
    # The promise is 1.3 times the larger of the two plus 0.5 GB.
    assert facts["peak"] < 1.3 * larger + 0.5e9
    # Measured 0.53 and 0.57 GB, of which 0.2 are the libraries; holding all arrays would take more.
    assert facts["peak"] < 1.0e9

"""Configs of original checkpoints, and shapes of single files, that are damaged or malicious."""

from pathlib import Path

import numpy as np
import pytest

from reground_jax.convert import original_configs, single_file
from reground_jax.convert.sources import TensorFile, open_original
from reground_jax.convert.stored import StoredArray
from tests import originals

ORIGINAL = [
    ("model", None),
    ("model", []),
    ("model", {"params": "x"}),
    ("model", {"params": {5: 6}}),
    ("autoencoder", {"params": {"ddconfig": 7}}),
    ("autoencoder", {"params": {"ddconfig": {"ch": "x"}}}),
    ("autoencoder", {"params": {"ddconfig": {}, "scale_factor": "x"}}),
    ("diffusion", {"params": {"timesteps": 10**12}}),
    ("diffusion", {"params": {"linear_start": [1]}}),
] + [
    ("model", {"params": {field: value}})
    for field, value in [
        ("model_channels", "wide"),
        ("model_channels", 10**9),
        ("channel_mult", 4),
        ("channel_mult", [1, 2, "x"]),
        ("channel_mult", [1] * 1000),
        ("attention_resolutions", 4),
        ("num_res_blocks", -1),
        ("num_heads", 0),
        ("context_dim", None),
        ("image_size", 10**6),
        ("inpaint_mode", "yes"),
        ("grounding_tokenizer", "PositionNet"),
        ("grounding_tokenizer", {"target": 5}),
        ("grounding_tokenizer", {"target": "text_grounding_net.PositionNet", "params": [1]}),
    ]
]


@pytest.mark.parametrize(("part", "change"), ORIGINAL)
def test_an_original_config_of_wrong_kinds_is_refused(part, change):
    parts, config = open_original(originals.TEXT_BOX)
    if isinstance(change, dict) and isinstance(change["params"], dict):
        change = {"params": config[part]["params"] | change["params"]}
        if part == "autoencoder" and isinstance(inner := change["params"]["ddconfig"], dict):
            whole = config[part]["params"]["ddconfig"]
            change["params"]["ddconfig"] = whole | inner
    with pytest.raises(ValueError) as caught:
        original_configs.translate(config | {part: change}, parts)
    assert "\n" not in str(caught.value)


SHAPES = [
    ("model.diffusion_model.input_blocks.0.0.weight", ()),
    ("model.diffusion_model.input_blocks.0.0.weight", (32, 0, 3, 3)),
    ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight", (32,)),
    ("model.diffusion_model.out.2.weight", (4, 32)),
    ("first_stage_model.encoder.conv_in.weight", (3,)),
    ("first_stage_model.encoder.conv_in.weight", None),
    ("first_stage_model.encoder.down.0.block.0.conv2.weight", (33, 32, 3, 3)),
    ("first_stage_model.post_quant_conv.weight", ()),
    ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (256,)),
    ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (0, 48)),
    ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (256, 47)),
    ("cond_stage_model.transformer.text_model.embeddings.position_embedding.weight", None),
]


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_a_single_file_of_odd_shapes_is_refused(name, shape):
    parts, _ = open_original(originals.TEXT_BOX)
    shapes: dict = {
        prefix + key: shape
        for part, prefix in originals.PREFIXES.items()
        for key, shape in parts[part].shapes().items()
    }
    assert name in shapes
    shapes[name] = shape
    arrays = {
        k: StoredArray(Path("x"), 0, np.dtype("f4"), v) for k, v in shapes.items() if v is not None
    }
    with pytest.raises(ValueError) as caught:
        single_file.from_single_file(TensorFile(arrays, "single file"))
    assert "\n" not in str(caught.value)

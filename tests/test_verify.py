"""`verify`: a good conversion passes, and a wrong one is detected in the right network."""

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reground_jax.convert.conversion import convert, gather
from reground_jax.convert.sources import resolve
from reground_jax.convert.verification import TOLERANCE, verify
from reground_jax.model import read_model, write_model
from reground_jax.storage.checkpoint import flatten
from tests import kinds, loras, originals, reference
from tests.marks import slow, some

NETWORKS = {"text_encoder", "unet", "vae"}
IMAGES = {"image_encoder", "image_project"}  # of models grounded by reference images


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return originals.write_tiny_tokenizer(tmp_path_factory.mktemp("t") / "tokenizer")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A diffusers folder, and what it converts to."""
    folder = tmp_path_factory.mktemp("tiny")
    reference.write_diffusers(folder / "theirs", "odd", form="hub")
    convert(folder / "theirs", folder / "ours")
    return folder / "theirs", folder / "ours"


@functools.cache
def companions(kind: str) -> dict[str, Any]:
    """What `verify` needs besides the original checkpoint of a kind."""
    found = kinds.companions(kinds.source(kind), Path(tempfile.mkdtemp(prefix="reground-verify-")))
    del found["tokenizer"]
    return found


def check_passes(*args, networks=NETWORKS, **kwargs):
    errors = verify(*args, **kwargs)
    assert set(errors) == networks
    # Tiny float32 networks agree to a few roundings; well below the tolerance for full size.
    assert max(errors.values()) < TOLERANCE / 10


def test_a_diffusers_folder_passes(tiny):
    check_passes(*tiny)


def test_an_original_checkpoint_passes(tmp_path, tokenizer):
    convert(originals.INPAINT, tmp_path / "ours", tokenizer=tokenizer)
    check_passes(originals.INPAINT, tmp_path / "ours")


@pytest.mark.parametrize(
    "write", [slow(originals.write_single_file), originals.write_diffusers_base]
)
def test_a_base_under_an_adapter_passes(tmp_path, write, tokenizer):
    base = write(tmp_path / "sd.safetensors")
    adapter = originals.write_adapter(tmp_path / "gligen.safetensors")
    convert(base, tmp_path / "ours", adapter=adapter, tokenizer=tokenizer)
    check_passes(base, tmp_path / "ours", adapter=adapter)


def test_loras_pass_in_both_networks_and_only_with_them(tmp_path, tiny):
    """In bfloat16, to which the sums are rounded once."""
    source, plain = tiny
    arrays = {}
    for network, module in (
        ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1"),
    ):
        inner = module.removeprefix("text_model.") if network == "text_encoder" else module
        outputs, inputs = gather(resolve(source)).tensors[network][f"{inner}.weight"].read().shape
        arrays[f"{network}.{module}.lora_A.weight"] = loras.normal(2, inputs)
        arrays[f"{network}.{module}.lora_B.weight"] = loras.normal(outputs, 2, seed=1)
    added = [(loras.save(tmp_path / "x.safetensors", arrays), (0.5, 0.25))]
    convert(source, tmp_path / "ours", loras=added, dtype="bfloat16")
    check_passes(source, tmp_path / "ours", loras=added)
    errors = verify(source, tmp_path / "ours")
    assert min(errors["unet"], errors["text_encoder"]) > TOLERANCE > errors["vae"]


def test_a_result_of_lower_precision_passes(tmp_path, tiny):
    convert(tiny[0], tmp_path / "ours", dtype="bfloat16")
    check_passes(tiny[0], tmp_path / "ours")


# "text_box" and "inpaint" are the text kind, tested above.
@pytest.mark.parametrize(
    "kind",
    some([k for k in kinds.ALL if k != "inpaint"], ("text_image", "canny")),
)
def test_every_kind_passes(kind):
    networks = NETWORKS | (IMAGES if kind.startswith("text_image") else set())
    source, ours = kinds.source(kind), kinds.converted(kind)
    check_passes(source, ours, networks=networks, **companions(kind))


def write_wrong(destination, right, path):
    """The model at `right` with one changed array."""
    model = read_model(right)
    arrays = dict(flatten(model.params))
    # Rolls an array (a wrong order), or changes the only value of a gate.
    arrays[path] = np.roll(arrays[path], 1) if arrays[path].ndim else arrays[path] + np.float32(0.1)
    write_model(destination, model.config, arrays.items(), model.tokenizer_json, {})
    return destination


def check_only_its_network(errors, path):
    above = {network for network, error in errors.items() if error > TOLERANCE}
    assert above == {path.split("/")[0]}


# One parameter of each network: a gate, a kernel of the decoder, one of the two pooled norms.
@pytest.mark.parametrize(
    "path",
    [
        "unet/mid_block/attentions/0/blocks/0/fuser/alpha_dense",
        "vae/decoder/mid_block/attention/to_qkv/kernel",
        "text_encoder/final_layer_norm/bias",
    ],
)
def test_one_changed_array_is_noticed_in_its_network_alone(tmp_path, tiny, path):
    source, destination = tiny
    check_only_its_network(verify(source, write_wrong(tmp_path / "wrong", destination, path)), path)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("text_image", "unet/position_net/linears_image/0/bias"),
        ("text_image", "unet/position_net/null_image_feature"),
        ("text_image", "image_encoder/class_embedding"),
        ("text_image", "image_project/kernel"),
        ("canny", "unet/position_net/backbone/stages/2/0/gamma"),
        ("canny", "unet/position_net/pos_embedding"),
        ("canny", "unet/position_net/null_feature"),
        ("canny", "unet/downsample_net/layers/1/kernel"),
        ("canny", "unet/first_conv/bias"),
        slow("keypoint", "unet/position_net/keypoint_embeddings"),
        slow("keypoint", "unet/position_net/null_xy_feature"),
        slow("sem", "unet/position_net/in_conv/kernel"),
        slow("sem", "unet/downsample_net/layers/0/kernel"),
        slow("normal", "unet/downsample_net/layers/0/kernel"),
    ],
)
def test_one_changed_array_is_noticed_in_every_kind(tmp_path, kind, path):
    wrong = write_wrong(tmp_path / "wrong", kinds.converted(kind), path)
    check_only_its_network(verify(kinds.source(kind), wrong, **companions(kind)), path)


def test_a_projection_that_is_the_wrong_way_round_is_noticed(tmp_path):
    model = read_model(kinds.converted("text_image"))
    arrays = dict(flatten(model.params))
    arrays["image_project/kernel"] = arrays["image_project/kernel"].T.copy()
    write_model(tmp_path / "wrong", model.config, arrays.items(), model.tokenizer_json, {})
    errors = verify(kinds.source("text_image"), tmp_path / "wrong", **companions("text_image"))
    check_only_its_network(errors, "image_project")


def test_a_first_convolution_must_be_given_again():
    with pytest.raises(ValueError, match=r"first convolution: pass SD_input_conv_weight_bias\.pth"):
        verify(kinds.source("canny"), kinds.converted("canny"))


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # makes its import fail
    with pytest.raises(ValueError, match=r"needs torch, .*pip install 'reground-jax\[verify\]'"):
        verify(tmp_path, tmp_path)


def test_nan_does_not_pass(tmp_path, tiny):
    source, destination = tiny
    model = read_model(destination)
    arrays = dict(flatten(model.params))
    path = "vae/decoder/conv_out/bias"  # the last of three outputs that are compared
    arrays[path] = np.full_like(arrays[path], np.nan)
    write_model(tmp_path / "wrong", model.config, arrays.items(), model.tokenizer_json, {})
    assert np.isnan(verify(source, tmp_path / "wrong")["vae"])

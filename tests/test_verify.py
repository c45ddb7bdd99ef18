"""`verify`: a good conversion passes, and a wrong one is detected in the right network."""

import sys

import numpy as np
import pytest

from reground_jax.convert.conversion import convert
from reground_jax.convert.verification import TOLERANCE, verify
from reground_jax.model import read_model, write_model
from reground_jax.storage.checkpoint import flatten
from tests import originals, reference

NETWORKS = {"text_encoder", "unet", "vae"}


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


def check_passes(*args, **kwargs):
    errors = verify(*args, **kwargs)
    assert set(errors) == NETWORKS
    # Tiny float32 networks agree to a few roundings; well below the tolerance for full size.
    assert max(errors.values()) < TOLERANCE / 10


def test_a_diffusers_folder_passes(tiny):
    check_passes(*tiny)


def test_an_original_checkpoint_passes(tmp_path, tokenizer):
    convert(originals.INPAINT, tmp_path / "ours", tokenizer=tokenizer)
    check_passes(originals.INPAINT, tmp_path / "ours")


@pytest.mark.parametrize("write", [originals.write_single_file, originals.write_diffusers_base])
def test_a_base_under_an_adapter_passes(tmp_path, write, tokenizer):
    base = write(tmp_path / "sd.safetensors")
    adapter = originals.write_adapter(tmp_path / "gligen.safetensors")
    convert(base, tmp_path / "ours", adapter=adapter, tokenizer=tokenizer)
    check_passes(base, tmp_path / "ours", adapter=adapter)


def test_a_result_of_lower_precision_passes(tmp_path, tiny):
    convert(tiny[0], tmp_path / "ours", dtype="bfloat16")
    check_passes(tiny[0], tmp_path / "ours")


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
    model = read_model(destination)
    arrays = dict(flatten(model.params))
    # Rolls an array (a wrong order), or changes the only value of a gate.
    arrays[path] = np.roll(arrays[path], 1) if arrays[path].ndim else arrays[path] + np.float32(0.1)
    write_model(tmp_path / "wrong", model.config, arrays.items(), model.tokenizer_json, {})
    errors = verify(source, tmp_path / "wrong")
    above = {network for network, error in errors.items() if error > TOLERANCE}
    assert above == {path.split("/")[0]}


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

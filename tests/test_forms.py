"""A file's format is detected from its bytes: in downloads, names and contents disagree."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from reground_jax.convert.forms import form_of
from reground_jax.convert.sources import Source, detect, open_folder, open_tensors

CASES = Path(__file__).parent / "data" / "cases" / "wrong-suffix"
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


@pytest.mark.parametrize("name", ["safetensors.ckpt", "SAFE.SAFETENSORS", "pickle.safetensors"])
def test_a_file_is_read_by_what_it_holds_whatever_its_name(name):
    tensors = open_tensors(CASES / name)
    assert tensors.shapes() == {"a": (2, 3), "b": (4,)}
    np.testing.assert_array_equal(tensors.read("a"), np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(tensors.read("b"), np.ones(4))


@pytest.mark.parametrize("name", ["x", "x.sft", "x.SFT", "x.pt", "x.json", "x.html", "x.ckpt.part"])
def test_the_ending_does_not_matter(tmp_path, name):
    safetensors.torch.save_file(WEIGHTS, tmp_path / name)
    assert form_of(tmp_path / name) == "safetensors"
    assert open_tensors(tmp_path / name).keys() == ["a", "b"]
    torch.save(WEIGHTS, tmp_path / name)
    assert form_of(tmp_path / name) == "torch"
    assert open_tensors(tmp_path / name).keys() == ["a", "b"]


@pytest.mark.parametrize("pages", [True, False])
def test_a_pointer_and_a_page_are_named_whatever_the_ending(tmp_path, pages):
    source = CASES / ("page.safetensors" if pages else "pointer.safetensors")
    says = "is a web page .* log in" if pages else r"is a Git LFS pointer, .* `git lfs pull`"
    for name in ("x.safetensors", "x.bin", "x.ckpt", "x"):
        shutil.copy(source, tmp_path / name)
        for opener in (open_tensors, detect):
            with pytest.raises(ValueError, match=says) as caught:
                opener(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_a_folder_finds_its_weights_by_name_and_reads_them_by_their_bytes(tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    torch.save(WEIGHTS, folder / "diffusion_pytorch_model.safetensors")
    assert open_folder(folder).keys() == ["a", "b"]
    shutil.copy(CASES / "pointer.safetensors", folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors is a Git LFS"):
        open_folder(folder)


@pytest.mark.parametrize("name", ["adapter.sft", "ADAPTER.SAFETENSORS", "adapter.CKPT"])
def test_a_folder_of_one_file_is_that_file_in_any_case_of_letters(tmp_path, name):
    key = "input_blocks.1.1.transformer_blocks.0.fuser.alpha_attn"
    safetensors.torch.save_file({key: torch.zeros(1)}, tmp_path / name)
    assert detect(tmp_path) == Source("adapter", tmp_path / name)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n  "])
def test_an_index_of_shards_is_detected_by_its_bytes_too_and_may_begin_with_a_mark(tmp_path, mark):
    safetensors.torch.save_file(WEIGHTS, tmp_path / "first.bin")
    index = tmp_path / "model.safetensors.index"
    where = json.dumps({"weight_map": {"a": "first.bin", "b": "first.bin"}}).encode()
    index.write_bytes(mark + where)
    assert open_tensors(index).keys() == ["a", "b"]


def test_each_shard_is_opened_once(tmp_path, monkeypatch):
    from reground_jax.convert import sources

    safetensors.torch.save_file(WEIGHTS, tmp_path / "first")
    (tmp_path / "index").write_text('{"weight_map": {"a": "first", "b": "first"}}')
    opened = []
    monkeypatch.setattr(sources, "read_header", lambda path: opened.append(path) or {})
    with pytest.raises(ValueError, match="says that a is in first"):
        open_tensors(tmp_path / "index")
    assert opened == [tmp_path / "first"]


@pytest.mark.parametrize("length", [0x8B1F, 0x5A42, 0x4B50, 0x0280, 0x2B7B, 0x0708])
def test_a_header_whose_length_looks_like_another_form_is_safetensors(tmp_path, length):
    """Its first two bytes are then those of gzip, bzip2, zip, a pickle, JSON or ONNX."""
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(length)
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + header + bytes(8))
    assert open_tensors(tmp_path / "x").keys() == ["a"]

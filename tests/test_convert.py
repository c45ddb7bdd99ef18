"""Every format of a checkpoint gives the same model, and all its problems are reported at once."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from reground_jax.convert.conversion import convert
from reground_jax.convert.keys import KeyMismatch
from reground_jax.model import read_model
from reground_jax.storage.checkpoint import flatten
from tests import originals, reference

CLIP = reference.DATA / "clip" / "bpe_simple_vocab_16e6.txt.gz"
CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    """A diffusers folder as today's libraries write it; no test changes it."""
    folder = tmp_path_factory.mktemp("today") / "model"
    reference.write_diffusers(folder, "sd1")
    return folder


@pytest.fixture(scope="module")
def today_info(today):
    return convert(today, today.parent / "ours")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return originals.write_tiny_tokenizer(tmp_path_factory.mktemp("t") / "tokenizer")


@pytest.fixture(scope="module")
def original_info(tmp_path_factory, tokenizer):
    """What the original pickle converts to: the reference for its other formats."""
    return convert(originals.TEXT_BOX, tmp_path_factory.mktemp("o") / "ours", tokenizer=tokenizer)


@pytest.fixture
def folder(today, tmp_path):
    """A copy of `today` to change."""
    return Path(shutil.copytree(today, tmp_path / "model"))


def save_again(folder, **options):
    """Writes the weights of a diffusers folder in another way, and removes the plain files."""
    for part, kind in CLASSES.items():
        model = kind.from_pretrained(folder / part)
        if options.get("variant") == "fp16":
            model = model.half()
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(folder / part, **options)


def change_weights(path, change):
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path)


def nothing_is_left(destination):
    return not destination.exists() and not list(destination.parent.glob(".*partial*"))


# ---- the forms of a diffusers folder


def test_the_hubs_form_gives_the_same_parameters(tmp_path, today_info):
    """Pickles, the text encoder's prefix and position_ids, old names of the VAE's attention."""
    reference.write_diffusers(tmp_path / "hub", "sd1", form="hub")
    info = convert(tmp_path / "hub", tmp_path / "ours")
    assert info["checksum"] == today_info["checksum"]  # covers names, dtypes, shapes, contents


def test_shards_give_the_same_parameters(tmp_path, folder, today_info):
    save_again(folder, max_shard_size="200KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert convert(folder, tmp_path / "ours")["checksum"] == today_info["checksum"]


@pytest.mark.parametrize("variant", ["fp16", None])
def test_an_fp16_variant_is_found_with_or_without_its_name(tmp_path, today, folder, variant):
    save_again(folder, variant="fp16")
    info = convert(folder, tmp_path / "ours", variant=variant)
    rounded = convert(today, tmp_path / "rounded", dtype="float16")
    assert info["dtype"] == "float16" and info["checksum"] == rounded["checksum"]


def test_lmd_plus_and_the_folders_of_gligens_fork_are_gligen(tmp_path, today, folder):
    """longlian/lmd_plus: GLIGEN's weights, of which the fork's config tells by a flag.

    Its scheduler, pipeline and variant as LMD's README loads them.
    """
    save_again(folder, variant="fp16")
    path = folder / "unet" / "config.json"
    fields = json.loads(path.read_text())
    assert fields.pop("attention_type") == "gated"
    path.write_text(json.dumps(fields | {"use_gated_attention": True}))
    index = {"_class_name": ["llm_grounded_diffusion", "LLMGroundedDiffusionPipeline"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    info = convert(folder, tmp_path / "ours", variant="fp16")
    assert info["checksum"] == convert(today, tmp_path / "same", dtype="float16")["checksum"]


def test_a_variant_that_is_not_there_is_named_with_what_is(tmp_path, folder):
    with pytest.raises(ValueError, match=r"has no weights: looked for .*\.ema\.safetensors"):
        convert(folder, tmp_path / "ours", variant="ema")


# ---- the bijection


def test_all_violations_are_listed_at_once_and_nothing_is_written(tmp_path, folder):
    def spoil(weights):
        del weights["conv_in.weight"]
        weights["stranger"] = torch.zeros(2)
        weights["conv_out.bias"] = torch.zeros(5)  # 4 latent channels

    change_weights(folder / UNET_WEIGHTS, spoil)
    vae = folder / "vae/diffusion_pytorch_model.safetensors"
    change_weights(vae, lambda weights: weights.pop("quant_conv.bias"))
    with pytest.raises(KeyMismatch) as caught:
        convert(folder, tmp_path / "ours")
    first, *problems = str(caught.value).split("\n  ")
    assert first.startswith("4 tensors do not fit") and sorted(problems) == [
        "! unet: conv_out.bias has shape (5,), but the config requires (4,)",
        "+ unet: stranger matches no parameter",
        "- unet: conv_in.weight is missing (for unet/conv_in/kernel)",
        "- vae: quant_conv.bias is missing (for vae/quant_conv/bias)",
    ]
    assert nothing_is_left(tmp_path / "ours")


def test_parts_of_two_models_are_refused(tmp_path, folder):
    reference.text_encoder("sd2").save_pretrained(folder / "text_encoder")
    with pytest.raises(ValueError, match="width 24, but the text encoder writes width 32"):
        convert(folder, tmp_path / "ours")


# ---- the original layout, and adapters


@pytest.mark.parametrize("write", [originals.write_single_file, originals.write_diffusers_base])
def test_a_base_under_an_adapter_gives_the_originals_parameters(
    tmp_path, write, tokenizer, original_info
):
    base = write(tmp_path / "base.safetensors")
    adapter = originals.write_adapter(tmp_path / "gligen.safetensors")
    info = convert(base, tmp_path / "ours", adapter=adapter, tokenizer=tokenizer)
    assert info["checksum"] == original_info["checksum"]
    assert info["adapter"] == str(adapter) and info["parameters"]["grounding"] > 0


def test_an_adapter_that_lacks_an_array_is_refused(tmp_path, tokenizer):
    base = originals.write_single_file(tmp_path / "base.safetensors")
    adapter = originals.write_adapter(tmp_path / "gligen.safetensors")
    change_weights(adapter, lambda weights: weights.pop("position_net.null_position_feature"))
    with pytest.raises(KeyMismatch, match="1 tensors .*\n.*null_position_feature is missing"):
        convert(base, tmp_path / "ours", adapter=adapter, tokenizer=tokenizer)


def test_plain_stable_diffusion_is_refused_with_the_way_out(tmp_path, tokenizer):
    base = originals.write_single_file(tmp_path / "base.safetensors")
    message = "is a plain Stable Diffusion checkpoint: it has no fusers .* with --adapter"
    with pytest.raises(ValueError, match=message):
        convert(base, tmp_path / "ours", tokenizer=tokenizer)
    reference.write_diffusers(tmp_path / "plain", "sd1", attention_type="default")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "plain", tmp_path / "ours")
    assert nothing_is_left(tmp_path / "ours")


def test_checkpoints_in_the_wrong_place_are_refused(tmp_path, today, tokenizer):
    adapter = originals.write_adapter(tmp_path / "gligen.safetensors")
    with pytest.raises(ValueError, match=r"is a GLIGEN adapter .*pass the Stable Diffusion"):
        convert(adapter, tmp_path / "ours")
    with pytest.raises(ValueError, match=r"--adapter .*tiny\.bin is a full checkpoint"):
        convert(today, tmp_path / "ours", adapter=originals.TEXT_BOX)
    with pytest.raises(ValueError, match="the base already has fusers"):
        convert(today, tmp_path / "ours", adapter=adapter)
    with pytest.raises(ValueError, match="is already a reground-jax model directory"):
        convert(today, tmp_path / "first")
        convert(tmp_path / "first", tmp_path / "ours")


# ---- tokenizers


def test_a_diffusers_folder_without_its_tokenizer_takes_another(tmp_path, folder, today_info):
    shutil.move(folder / "tokenizer", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="model/tokenizer has no tokenizer: looked for"):
        convert(folder, tmp_path / "ours")
    info = convert(folder, tmp_path / "ours", tokenizer=tmp_path / "elsewhere")
    assert info["checksum"] == today_info["checksum"]


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="begins and ends texts with 49406 .* with 0 and 255"):
        convert(originals.TEXT_BOX, tmp_path / "ours", tokenizer=CLIP)
    with pytest.raises(ValueError, match=r"special tokens .* has 1000 tokens .* use the tokenize"):
        convert(folder, tmp_path / "ours", tokenizer=CLIP)
    with pytest.raises(ValueError, match="tokenizer /no/where does not exist"):
        convert(originals.TEXT_BOX, tmp_path / "ours", tokenizer="/no/where")
    assert nothing_is_left(tmp_path / "ours")


# The position embedding has 77 rows, so a longer tokenizer is limited to that.
@pytest.mark.parametrize(("length", "kept"), [(20, 20), (1000, 77)])
def test_padding_and_length_are_those_of_the_tokenizer_that_was_given(tmp_path, length, kept):
    settings = {"pad_token": "!", "model_max_length": length}
    tokenizer = originals.write_tiny_tokenizer(tmp_path / "tokenizer", **settings)
    convert(originals.TEXT_BOX, tmp_path / "ours", tokenizer=tokenizer)
    config = read_model(tmp_path / "ours").config.text_encoder.tokenizer
    assert config.pad_token_id == 1 and config.max_length == kept  # "!" comes after begin-of-text


# ---- dtypes, progress, places


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_result_has_the_dtype_that_was_asked_for(tmp_path, today, today_info, dtype):
    info = convert(today, tmp_path / "ours", dtype=dtype)
    assert info["dtype"] == dtype and today_info["dtype"] == "float32"
    ours = dict(flatten(read_model(tmp_path / "ours").params))
    exact = dict(flatten(read_model(today.parent / "ours").params))
    for name, array in ours.items():
        assert array.dtype.name == dtype
        np.testing.assert_array_equal(array, exact[name].astype(array.dtype))


def test_an_unknown_dtype_is_refused(tmp_path, today):
    with pytest.raises(ValueError, match="dtype is 'int8': choose from float32, float16, bfloat16"):
        convert(today, tmp_path / "ours", dtype="int8")


def test_progress_goes_up_to_the_number_of_parameters(tmp_path, today):
    seen = []
    info = convert(today, tmp_path / "ours", progress=lambda *counts: seen.append(counts))
    done, totals = zip(*seen, strict=True)
    networks = sum(info["parameters"][name] for name in CLASSES)
    assert set(totals) == {networks} and done[-1] == networks
    assert list(done) == sorted(set(done))


def test_an_existing_destination_is_left_alone(tmp_path, today):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine").write_text("keep")
    with pytest.raises(FileExistsError, match="ours already exists: choose another path"):
        convert(today, tmp_path / "ours")
    assert (tmp_path / "ours" / "mine").read_text() == "keep"


# ---- damaged and malicious files


def test_a_truncated_file_is_refused(tmp_path, folder):
    path = folder / UNET_WEIGHTS
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"safetensors is truncated: \d+ bytes expected, \d+ foun"):
        convert(folder, tmp_path / "ours")
    assert nothing_is_left(tmp_path / "ours")


class Command:
    """Unpickling it runs a shell command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["whole file", "one component"])
def test_a_pickle_that_runs_code_is_refused_by_the_name_of_what_it_calls(tmp_path, folder, place):
    trace = tmp_path / "it-ran"
    path = tmp_path / "evil.bin"
    if place == "one component":
        (folder / UNET_WEIGHTS).unlink()
        path = folder / "unet" / "diffusion_pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"model": Command(f"touch {trace}")}, 2))
    with pytest.raises(ValueError, match=rf"refers to {os.system.__module__}\.system, which could"):
        convert(path if place == "whole file" else folder, tmp_path / "ours")
    assert not trace.exists() and nothing_is_left(tmp_path / "ours")


def test_no_source_needs_torch(tmp_path, today, tokenizer):
    base = originals.write_single_file(tmp_path / "base.safetensors")
    adapter = originals.write_adapter(tmp_path / "gligen.safetensors")
    reference.write_diffusers(tmp_path / "hub", "odd", form="hub")
    lora = {"unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3)}
    lora["unet.conv_in.lora_B.weight"] = torch.ones(32, 1)
    safetensors.torch.save_file(lora, tmp_path / "lora.safetensors")
    script = f"""
import sys
for name in ("torch", "diffusers", "transformers", "safetensors"):
    sys.modules[name] = None  # makes its import fail
from reground_jax.convert.conversion import convert
options = dict(tokenizer={str(tokenizer)!r})
convert({str(originals.TEXT_BOX)!r}, "a", **options)
convert({str(base)!r}, "b", adapter={str(adapter)!r}, **options)
convert({str(tmp_path / "hub")!r}, "c")
convert({str(today)!r}, "d")
convert("d", "e", loras=[("lora.safetensors", 0.5)])
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)

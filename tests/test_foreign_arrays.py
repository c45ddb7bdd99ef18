"""Source arrays that are not part of the model, are part of another one, or are not finite."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import reground_jax.convert.conversion as converting
from reground_jax.convert import full_disk, passing, references
from reground_jax.convert.conversion import convert, gather
from reground_jax.convert.keys import KeyMismatch, foreign
from reground_jax.convert.sources import resolve
from tests import originals, reference

UNET = "unet/diffusion_pytorch_model.safetensors"
# Each with the reason why images do not depend on it.
HARMLESS = [
    "cond_stage_model.logit_scale",  # CLIP's training
    "cond_stage_model.text_projection",  # into CLIP's joint space
    "cond_stage_model.transformer.text_projection.weight",
    "denoiser.sigmas",  # another code's table of the noise
    "embedding_manager.embedder.transformer.text_model.x",  # textual inversion of the original code
    "first_stage_model.loss.discriminator.main.0.weight",  # the autoencoder's training
    "first_stage_model.loss.logvar",
    "first_stage_model.model_ema.decay",
    "logvar",  # weights of the loss
    "lvlb_weights",
    "safety_checker.concept_embeds",  # only checks finished images
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return originals.write_tiny_tokenizer(tmp_path_factory.mktemp("t") / "tokenizer")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return originals.write_adapter(tmp_path_factory.mktemp("a") / "gligen.safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    reference.write_diffusers(folder, "small")
    return folder


def single_file(path: Path, change: Callable[[dict], object], **options) -> Path:
    """A single file of plain Stable Diffusion with other arrays."""
    originals.write_single_file(path, **options)
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path)
    return path


def test_harmless_foreign_arrays_are_ignored_and_named(tmp_path, monkeypatch, tokenizer, adapter):
    def collect(directory, config, arrays, *_):
        return {"arrays": dict(arrays)}

    monkeypatch.setattr(converting, "write_model", collect)
    plain = originals.write_single_file(tmp_path / "plain.safetensors")
    extra = {name: torch.ones(2) for name in HARMLESS}
    extra["first_stage_model.model_ema.decay"] = torch.tensor(float("nan"))  # and never read
    odd = single_file(tmp_path / "odd.safetensors", lambda weights: weights.update(extra))
    options = dict(adapter=adapter, tokenizer=tokenizer)
    expected = convert(plain, tmp_path / "ours", **options)["arrays"]  # no warning
    with pytest.warns(UserWarning, match="and 6 more: ignored, since they are not used") as caught:
        arrays = convert(odd, tmp_path / "ours", **options)["arrays"]
    assert len(caught) == 1 and arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])
    gathered = gather(resolve(odd), tokenizer=tokenizer)
    found = [*gathered.foreign, *foreign(gathered.tensors)]
    assert len(found) == len(HARMLESS)
    assert all(any(name.split(": ")[-1] in known for known in HARMLESS) for name in found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ztsnr", r"trained with zero terminal SNR \(it has an array named ztsnr\), so its U-Net"),
        ("model.diffusion_model.label_emb.0.0.weight", "a U-Net with label_emb, like SDXL's"),
        ("model_stranger", r"no known part of Stable Diffusion \(1\): model_stranger"),
        ("first_stage_model.stranger", r"vae: stranger matches no parameter"),
    ],
)
def test_arrays_that_change_the_model_stay_refused(tmp_path, tokenizer, adapter, name, message):
    path = single_file(tmp_path / "odd.safetensors", lambda w: w.update({name: torch.ones(1)}))
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "ours", adapter=adapter, tokenizer=tokenizer)


def test_the_scale_of_latents_is_read_where_the_file_has_it(tmp_path, tokenizer):
    def scaled(value):
        path = single_file(tmp_path / "x.safetensors", lambda w: w.update({"scale_factor": value}))
        return gather(resolve(path), tokenizer=tokenizer).config.vae.scaling_factor

    assert scaled(torch.tensor(0.13025)) == 0.13025  # SDXL's
    for wrong in (torch.tensor(0.0), torch.tensor(float("nan")), torch.ones(2)):
        with pytest.raises(ValueError, match=r"x\.safetensors: scale_factor is"):
            scaled(wrong)


def test_a_text_encoder_with_its_projection_converts(tmp_path, monkeypatch, model):
    monkeypatch.setattr(converting, "write_model", lambda *arguments: {"config": arguments[1]})
    shutil.copytree(model, tmp_path / "model")
    fields = reference.TEXTS["small"] | {"projection_dim": 16}
    text = CLIPTextModelWithProjection(CLIPTextConfig(**fields))
    text.save_pretrained(tmp_path / "model" / "text_encoder")
    with pytest.warns(UserWarning, match="text_encoder: text_projection.weight: ignored"):
        found = convert(tmp_path / "model", tmp_path / "ours")["config"]
    assert found == convert(model, tmp_path / "ours")["config"]


def test_the_references_of_a_verification_take_what_a_conversion_takes(tmp_path, model):
    references._check_loaded("text_encoder", [], ["text_projection.weight", "logit_scale"])
    references._check_loaded("vae", [], ["loss.logvar"])
    with pytest.raises(ValueError, match="1 missing or unexpected tensors, such as stranger"):
        references._check_loaded("vae", [], ["stranger"])
    fork = tmp_path / "fork"
    shutil.copytree(model, fork)
    fields = json.loads((fork / "unet" / "config.json").read_text())
    assert fields.pop("attention_type") == "gated"
    (fork / "unet" / "config.json").write_text(json.dumps(fields | {"use_gated_attention": True}))
    gated = {"attention_type": "gated"}
    unet = references._from_folder(fork, None, references.import_libraries(), gated)["unet"]
    assert any(".fuser." in name for name in unet.state_dict())


# ---- bases that are not plain Stable Diffusion


def with_input_channels(channels: int, key: str) -> Callable[[dict], object]:
    def change(weights: dict) -> None:
        shape = (weights[key].shape[0], channels, 3, 3)
        weights[key] = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    return change


LDM_INPUT = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (8, r"in_channels is 8, as in models that edit images by instruction \(InstructPix2Pix\)"),
        (9, r"the base is an inpainting model \(9 input channels\), whose extra"),
        (5, "in_channels is 5, expected 4"),
    ],
)
@pytest.mark.parametrize("form", ["single file", "folder"])
def test_no_adapter_goes_over_a_base_of_more_channels(
    tmp_path, tokenizer, adapter, channels, message, form
):
    options: dict = {"adapter": adapter}
    if form == "single file":
        options["tokenizer"] = tokenizer
        change = with_input_channels(channels, LDM_INPUT)
        base = single_file(tmp_path / "base.safetensors", change)
    else:
        base = tmp_path / "base"
        reference.write_diffusers(base, "small", attention_type="default", in_channels=channels)
    with pytest.raises(ValueError, match=message):
        convert(base, tmp_path / "ours", **options)
    assert not (tmp_path / "ours").exists()


def test_a_gligen_inpainting_checkpoint_still_converts(tmp_path):
    reference.write_diffusers(tmp_path / "model", "inpaint")
    assert gather(resolve(tmp_path / "model")).config.unet.inpainting


# ---- arrays that are not finite


def spoiled(model: Path, copy: Path, name: str, place: tuple, value: float) -> Path:
    shutil.copytree(model, copy)
    weights = safetensors.torch.load_file(copy / UNET)
    weights[name][place] = value
    safetensors.torch.save_file(weights, copy / UNET)
    return copy


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("conv_in.weight", (0, 0, 0, 0), float("nan")),
        ("conv_in.weight", (-1, -1, -1, -1), float("inf")),
        # one of several that form a parameter
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight", (3, 3), -float("inf")),
    ],
)
def test_nan_and_infinity_are_refused_with_the_name_of_the_array(
    tmp_path, model, name, place, value
):
    folder = spoiled(model, tmp_path / "model", name, place, value)
    message = rf"{UNET}: {name} has NaN or infinite values \(1 of \d+\).*; use another copy"
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_numbers_beyond_the_dtype_that_is_asked_for_are_refused(tmp_path, model):
    folder = spoiled(model, tmp_path / "model", "conv_in.bias", (0,), 1e6)  # 65504 is its largest
    with pytest.raises(ValueError, match="conv_in.bias has values too large for float16: use"):
        convert(folder, tmp_path / "ours", dtype="float16")


def test_empty_and_large_arrays_are_checked_completely():
    size, is_finite = passing.CHECKED, passing.is_finite
    numbers = np.zeros(2 * size + 5, np.float16)
    assert is_finite(numbers) and is_finite(numbers[:0]) and is_finite(np.ones(()))
    for place in (0, size - 1, size, 2 * size + 4):
        numbers[:] = 0
        numbers[place] = np.nan
        assert not is_finite(numbers)


# ---- a full disk


def test_a_full_disk_is_recognized_in_errors_of_libraries(tmp_path):
    # As Orbax 0.12 says it: without an error number, and much longer.
    text = "RESOURCE_EXHAUSTED: Error writing local file [source locations='...'] [OS error 28: ENOSPC No space left on device]"  # noqa: E501
    for error in (
        ValueError(text),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ):
        with pytest.raises(OSError, match="the disk is full: free some space, or") as caught:
            with full_disk.naming_a_full_disk(tmp_path / "ours"):
                raise RuntimeError("checkpointing failed") from error
        assert caught.value.filename == str(tmp_path / "ours")
    with pytest.raises(KeyMismatch):
        with full_disk.naming_a_full_disk(tmp_path):
            raise KeyMismatch("another error stays as it is")


FULL = """
import sys
from reground_jax.cli import main
sys.exit(main(["convert", sys.argv[1], sys.argv[2] + "/ours"]))
"""


def in_namespace(*argv: str) -> list[str]:
    """A command in its own mount namespace, with a disk of 100 KB at its last argument."""
    script = 'mount -t tmpfs -o size=100k none "$1" && shift && exec "$@"'
    return ["unshare", "-rm", "sh", "-c", script, "sh", argv[-1], *argv]


def test_converting_to_a_full_disk_says_so_in_one_short_sentence(tmp_path, model):
    disk = tmp_path / "disk"
    disk.mkdir()
    probe = subprocess.run(in_namespace("true", str(disk)), capture_output=True)
    if probe.returncode:
        pytest.skip("needs user namespaces, to mount a small disk")
    command = in_namespace(sys.executable, "-c", FULL, str(model), str(disk))
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
    last = done.stderr.strip().splitlines()[-1]
    expected = f"{disk}/ours: the disk is full: free some space, or choose another destination"
    assert last == f"reground-jax: error: {expected}" and done.returncode == 2

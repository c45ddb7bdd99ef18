"""Files, folders and Hub ids as one lazy interface; safetensors' own writer is the reference."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch

from reground_jax.convert import hub, sources
from reground_jax.convert.sources import detect, open_folder, open_tensors, resolve

ORIGINAL = Path(__file__).parent / "data" / "original_text_box_tiny.bin"
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(4, dtype=torch.float16)}


def save(path, weights=WEIGHTS):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    else:
        torch.save(weights, path)
    return path


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def check_weights(tensors):
    assert sorted(tensors.keys()) == ["a", "b.c"] and len(tensors) == 2 and "a" in tensors
    assert tensors.shape("a") == (2, 3) and tensors.dtype("b.c") == np.float16
    assert tensors.nbytes == 6 * 4 + 4 * 2  # six float32, four float16
    np.testing.assert_array_equal(tensors.read("a"), WEIGHTS["a"].numpy())
    np.testing.assert_array_equal(tensors.read("b.c"), WEIGHTS["b.c"].numpy())


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pth"])
def test_both_formats_read_alike(tmp_path, name):
    check_weights(open_tensors(save(tmp_path / name)))


def test_a_state_dict_under_its_own_key_is_unwrapped(tmp_path):
    check_weights(open_tensors(save(tmp_path / "x.ckpt", {"state_dict": WEIGHTS})))


@pytest.mark.parametrize(
    "dtype", "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
)
def test_every_dtype_of_safetensors_reads_as_written(tmp_path, dtype):
    expected = torch.arange(-6, 6).reshape(3, 4).to(getattr(torch, dtype))
    scalar, empty = expected[0, 0].clone(), expected[:0].clone()
    path = save(tmp_path / "x.safetensors", {"x": expected, "scalar": scalar, "empty": empty})
    tensors = open_tensors(path)
    assert tensors.dtype("x").name == dtype
    assert tensors.shape("scalar") == () and tensors.shape("empty") == (0, 4)
    as_float64 = tensors.read("x").astype(np.float64)
    np.testing.assert_array_equal(as_float64, expected.to(torch.float64).numpy())
    assert tensors.read("scalar").astype(np.float64) == scalar.item()
    assert tensors.read("empty").shape == (0, 4)


def test_opening_reads_no_array_and_reading_holds_one(tmp_path):
    large = {f"w{n}": torch.full((1_000_000,), n, dtype=torch.float32) for n in range(5)}
    path = save(tmp_path / "x.safetensors", large)
    tracemalloc.start()
    tensors = open_tensors(path)
    opened = tracemalloc.get_traced_memory()[1]
    for name in tensors.keys():
        tensors.read(name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened < 1e6  # the header is 400 bytes; the arrays are 4 MB each
    assert peak < 2 * 4e6 + 1e6  # one array, and the one before until it is dropped


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (4, r"not a supported checkpoint .* its 4 bytes start with"),
        (60, r"header alone needs \d+ bytes, 60 found"),
        (-1, r"x\.safetensors is truncated: \d+ bytes expected, \d+ found"),
    ],
)
def test_a_truncated_safetensors_says_expected_and_found(tmp_path, kept, message):
    path = save(tmp_path / "x.safetensors")
    os.truncate(path, kept if kept > 0 else path.stat().st_size + kept)
    with pytest.raises(ValueError, match=message):
        open_tensors(path)


def test_a_safetensors_with_bytes_to_spare_is_refused(tmp_path):
    path = save(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ValueError, match="longer than its header says"):
        open_tensors(path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}  # two float32 are 8 bytes


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{not json", "not JSON"),
        (b"[1]", "not a supported checkpoint"),
        ({"x": 3}, "x is described as 3"),
        ({"x": ENTRY | {"shape": [-2]}}, "x is described as"),
        ({"x": ENTRY | {"shape": [3]}}, "x of 12 bytes"),
        ({"x": ENTRY | {"data_offsets": [0, 4]}}, "x of 8 bytes"),
        ({"x": ENTRY, "y": ENTRY}, "should begin at 8"),
        ({"x": ENTRY | {"dtype": "F8_E4M3"}}, "x has dtype F8_E4M3, which is not supported"),
    ],
)
def test_a_corrupt_header_is_one_clear_sentence(tmp_path, header, message):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(8))
    with pytest.raises(ValueError, match=message) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_read_as_one(tmp_path, ending):
    first, second = f"m-00001-of-00002.{ending}", f"m-00002-of-00002.{ending}"
    save(tmp_path / first, {"a": WEIGHTS["a"]})
    save(tmp_path / second, {"b.c": WEIGHTS["b.c"]})
    index = write_json(
        tmp_path / f"m.{ending}.index.json", {"weight_map": {"a": first, "b.c": second}}
    )
    check_weights(open_tensors(index))
    write_json(index, {"weight_map": {"a": first, "b.c": first}})
    with pytest.raises(ValueError, match=rf"b\.c is in {first}, which does not have it"):
        open_tensors(index)
    (tmp_path / first).unlink()
    with pytest.raises(ValueError, match=f"there is no file .*{first}"):
        open_tensors(index)


def test_an_index_without_a_map_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not an index of shards: its weight_map should"):
        open_tensors(write_json(tmp_path / "m.safetensors.index.json", {"metadata": {}}))


def test_a_pickle_with_other_things_than_arrays_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'step' is a int, but a state dict may only hold ar"):
        open_tensors(save(tmp_path / "x.bin", WEIGHTS | {"step": 3}))
    with pytest.raises(ValueError, match="holds a StoredArray; a dict of arrays was expected"):
        open_tensors(save(tmp_path / "x.bin", WEIGHTS["a"]))


@pytest.mark.parametrize(
    ("present", "variant", "picked"),
    [
        # full precision first, then safetensors, then whole files
        (["model.safetensors", "model.fp16.safetensors"], None, "model.safetensors"),
        (["model.fp16.safetensors", "pytorch_model.bin"], None, "pytorch_model.bin"),
        (["pytorch_model.bin", "model.safetensors"], None, "model.safetensors"),
        (
            ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"],
            "fp16",
            "diffusion_pytorch_model.fp16.bin",
        ),
        (["diffusion_pytorch_model.fp16.bin"], None, "diffusion_pytorch_model.fp16.bin"),
        (["model.safetensors"], "fp16", None),
        (["model.non_ema.safetensors"], None, None),
        (["model.non_ema.safetensors"], "non_ema", "model.non_ema.safetensors"),
        (
            ["diffusion_pytorch_model.safetensors.index.json"],
            None,
            "diffusion_pytorch_model.safetensors.index.json",
        ),
        # the index's name today, and in older versions of diffusers
        (
            ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"],
            None,
            "model.safetensors.index.fp16.json",
        ),
        (["model.fp16.safetensors.index.json"], "fp16", "model.fp16.safetensors.index.json"),
    ],
)
def test_weights_are_picked_by_a_stated_preference(present, variant, picked):
    assert sources.pick_weights(present, variant) == picked


def test_a_folder_without_weights_lists_what_was_looked_for(tmp_path):
    write_json(tmp_path / "unet" / "config.json", {})
    with pytest.raises(ValueError, match=r"fp16\.safetensors.*; it has config\.json"):
        open_folder(tmp_path / "unet", "fp16")
    check_weights(open_folder(save(tmp_path / "unet" / "diffusion_pytorch_model.bin").parent))


def test_the_original_checkpoint_is_told_and_split_into_its_parts():
    assert detect(ORIGINAL) == sources.Source("original", ORIGINAL)
    parts, config = sources.open_original(ORIGINAL)
    assert {name: len(part) for name, part in parts.items()} == {
        "model": 964,
        "text_encoder": 37,
        "autoencoder": 176,
        "diffusion": 12,
    }
    assert config["autoencoder"]["params"]["scale_factor"] == 0.18215
    alpha = next(key for key in parts["model"].keys() if key.endswith("alpha_attn"))
    assert parts["model"].shape(alpha) == ()  # gates are 0-d
    assert parts["diffusion"].read("betas")[0] == np.float32(0.00085)


FUSER = "input_blocks.1.1.transformer_blocks.0.fuser.alpha_attn"


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ([FUSER, "position_net.null_positive_feature"], "adapter"),
        (["model.diffusion_model.out.0.weight", "first_stage_model.quant_conv.bias"], "ldm"),
        ([f"unet.{FUSER[:-11]}.linear.lora_A.weight"], "lora"),  # of a fuser, but no adapter
    ],
)
def test_single_files_are_told_by_their_keys(tmp_path, keys, kind):
    path = save(tmp_path / "x.safetensors", {key: torch.zeros(1) for key in keys})
    assert detect(path) == sources.Source(kind, path)
    assert detect(tmp_path) == sources.Source(kind, path)  # a folder with that one file


def test_other_files_are_refused_with_what_they_hold(tmp_path):
    with pytest.raises(ValueError, match=r"known kind of checkpoint: it has 2 arrays \(a, b\.c"):
        detect(save(tmp_path / "x.safetensors"))
    with pytest.raises(
        ValueError, match="not an original GLIGEN checkpoint, .* lacks text_encoder"
    ):
        detect(save(tmp_path / "x.pth", {"model": WEIGHTS, "autoencoder": {}}))


def diffusers_folder(path):
    for part in ("unet", "vae", "text_encoder"):
        write_json(path / part / "config.json", {})
    write_json(path / "scheduler" / "scheduler_config.json", {})
    return path


def test_folders_are_told_apart(tmp_path):
    folder = diffusers_folder(tmp_path / "theirs")
    assert detect(folder) == sources.Source("diffusers", folder)
    ours = write_json(tmp_path / "ours" / "config.json", {"format": "reground-jax/1"}).parent
    assert detect(ours) == sources.Source("ours", ours)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match=r"incomplete .* lacks vae/config\.json"):
        detect(folder)
    write_json(tmp_path / "unet" / "config.json", {"_class_name": "UNet2DConditionModel"})
    with pytest.raises(ValueError, match="one component .* pass its parent folder"):
        detect(tmp_path / "unet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: neither a diffusers model .* no weights at all"):
        detect(tmp_path / "empty")
    with pytest.raises(ValueError, match="does not exist; pass an existing folder or file"):
        resolve(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("owner/na.me-1", ("owner/na.me-1", None, None)),
        ("owner/name@fp16", ("owner/name", None, "fp16")),
        ("owner/name/sub/x.bin@v1", ("owner/name", "sub/x.bin", "v1")),
        ("/tmp/x", None),
        ("./x/y", None),
        ("name", None),
        ("../x", None),
    ],
)
def test_hub_ids_are_told_from_paths(text, parsed):
    assert hub.parse(text) == parsed


def fake_hub(monkeypatch, folder):
    """A Hub whose only repository is `folder`; returns the requested patterns."""
    asked = []

    def snapshot(repo_id, *, revision=None, allow_patterns=None, local_files_only=False):
        asked.append(allow_patterns)
        return str(folder)

    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return asked


def test_only_the_needed_files_of_a_hub_repository_are_downloaded(tmp_path, monkeypatch):
    folder = diffusers_folder(tmp_path)
    needed = [
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model-00001-of-00001.safetensors",
        "vae/diffusion_pytorch_model.fp16.bin",
        "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json",
        "model_index.json",
    ]
    ignored = [
        "unet/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.fp16.bin",
        "safety_checker/pytorch_model.bin",
        "v1-5-pruned.ckpt",
    ]
    for name in needed + ignored:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    configs = [f"{part}/config.json" for part in ("unet", "vae", "text_encoder")]
    asked = fake_hub(monkeypatch, folder)
    assert resolve("owner/name") == sources.Source("diffusers", folder)
    assert sorted(asked[0]) == sorted([*needed, *configs, "scheduler/scheduler_config.json"])


def test_a_hub_repository_of_one_file_gives_that_file(tmp_path, monkeypatch):
    path = save(tmp_path / "adapter.safetensors", {FUSER: torch.zeros(1)})
    (tmp_path / "README.md").touch()
    asked = fake_hub(monkeypatch, tmp_path)
    assert resolve("owner/name") == sources.Source("adapter", path)
    assert asked == [["adapter.safetensors"]]
    save(tmp_path / "adapter_fp16.safetensors", {FUSER: torch.zeros(1)})
    fake_hub(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"adapter_fp16\.safetensors; name the file itself"):
        resolve("owner/name")
    assert resolve("owner/name/adapter.safetensors") == sources.Source("adapter", path)
    with pytest.raises(ValueError, match=r"owner/name has no lost\.bin; it has"):
        resolve("owner/name/lost.bin")


def test_a_tokenizer_comes_from_the_hub_too(tmp_path, monkeypatch):
    for name in ("vocab.json", "merges.txt", "pytorch_model.bin"):
        (tmp_path / name).touch()
    asked = fake_hub(monkeypatch, tmp_path)
    assert sources.resolve_tokenizer("openai/clip-vit-large-patch14") == tmp_path
    assert asked == [["vocab.json", "merges.txt"]]
    assert sources.resolve_tokenizer(tmp_path) == tmp_path
    with pytest.raises(ValueError, match=r"tokenizer /no/where does not exist"):
        sources.resolve_tokenizer("/no/where")


def test_offline_the_cache_is_taken_or_the_error_names_the_id_and_the_way_out(
    tmp_path, monkeypatch
):
    def offline(*_, **__):
        raise ConnectionError("no network\nmore lines")

    path = save(tmp_path / "adapter.safetensors", {FUSER: torch.zeros(1)})
    fake_hub(monkeypatch, tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", offline)
    assert resolve("owner/name") == sources.Source("adapter", path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = (
        r"'owner/name' is not a local path, .*\(no network\).*`hf download owner/name --local-dir"
    )
    with pytest.raises(ValueError, match=message) as caught:
        resolve("owner/name")
    assert "\n" not in str(caught.value)

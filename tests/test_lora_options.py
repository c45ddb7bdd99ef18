"""Which LoRAs are added, where they lie, and their scales: `--lora`, `convert(loras=...)`."""

import hashlib
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from reground_jax.cli.convert import lora_of
from reground_jax.convert.conversion import convert
from reground_jax.convert.lora import deltas_of, find
from tests import loras
from tests.command import one_error
from tests.loras import QUERY, TEXT_QUERY, factor, leaves, normal, pair, peft, save


@pytest.fixture
def file(tmp_path):
    """Writes a LoRA file."""
    return lambda arrays: save(tmp_path / "x.safetensors", arrays)


@pytest.mark.parametrize(
    "scale",
    [float("nan"), float("-inf"), "0.8", None, True, (1,), (1, 2, 3), (1, float("nan")), [], 1j],
)
def test_a_scale_that_is_no_finite_number_is_refused(scale):
    with pytest.raises(ValueError, match="the scale of LoRA nowhere is .*must be a finite number"):
        find([("nowhere", 1), ("nowhere", scale)])


def test_a_bad_scale_is_refused_before_any_file_is_read(tmp_path):
    with pytest.raises(ValueError, match="scale of LoRA nowhere is nan"):
        convert("lost", tmp_path / "x", loras=[("nowhere", float("nan"))])
    with pytest.raises(ValueError, match="loras has 'nowhere': give pairs of a path and a scale"):
        find(["nowhere"])


def test_both_networks_have_a_scale_of_their_own(file):
    text = {f"text_encoder.{TEXT_QUERY}.lora_A.weight": normal(2, 32)}
    text[f"text_encoder.{TEXT_QUERY}.lora_B.weight"] = normal(32, 2)
    found = find([(file(pair(QUERY) | text), (np.float32(0.5), -2))])
    deltas = deltas_of(found, leaves())
    assert deltas["unet"][f"{QUERY}.weight"][0].factor == 0.5
    assert deltas["text_encoder"][f"{TEXT_QUERY}.weight"][0].factor == -2
    digest = hashlib.sha256(found[0].path.read_bytes()).hexdigest()
    assert found[0].record() == {"path": found[0].source, "sha256": digest, "scales": [0.5, -2.0]}


def test_the_option_names_a_file_and_scales(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b@home"):
        Path(name).touch()
    assert lora_of("a.safetensors") == ("a.safetensors", 1.0)
    assert lora_of("a.safetensors@0.8") == ("a.safetensors", 0.8)
    assert lora_of("a.safetensors@-0.8,.5") == ("a.safetensors", (-0.8, 0.5))
    assert lora_of("b@home") == ("b@home", 1.0) and lora_of("b@home@2") == ("b@home", 2.0)
    assert lora_of("owner/name@main") == ("owner/name@main", 1.0)  # a revision
    assert lora_of("owner/name@main@0.5") == ("owner/name@main", 0.5)
    for scale in ("nan", "inf", "1e999", "0.8,", "1,2,3", "a", ""):
        with pytest.raises(
            ValueError, match=f"--lora a.safetensors@{scale}: the scale is '{scale}'"
        ):
            lora_of(f"a.safetensors@{scale}")


def test_loras_in_other_places_are_told_where_they_belong(tmp_path, file, capsys):
    path = file(pair(QUERY))
    target = str(tmp_path / "ours")
    message = one_error(capsys, ["convert", str(path), target])
    assert "is a LoRA" in message and "this file with --lora" in message
    message = one_error(capsys, ["convert", str(loras.BASE), target, "--adapter", str(path)])
    assert "is a LoRA: pass it with --lora" in message
    message = one_error(capsys, ["convert", "nowhere", target, "--lora", f"{path}@much"])
    assert "the scale is 'much'" in message
    message = one_error(capsys, ["convert", "nowhere", target, "--lora", "lost.safetensors@1"])
    assert "LoRA lost.safetensors does not exist" in message
    assert not (tmp_path / "ours").exists()


def test_a_model_directory_takes_nothing_but_loras(tmp_path, file, tiny_model_dir, capsys):
    options = [
        "convert",
        str(tiny_model_dir),
        str(tmp_path / "x"),
        "--lora",
        str(file(pair(QUERY))),
    ]
    message = one_error(capsys, [*options, "--first-conv", "x", "--tokenizer", "y"])
    assert "is a model directory already, so leave out --first-conv, --tokenizer" in message
    message = one_error(capsys, [*options, "--verify"])
    assert "is a model directory: verify the conversion of the checkpoint" in message
    message = one_error(capsys, options)
    assert "it is for another base" in message and not (tmp_path / "x").exists()


def test_a_lora_comes_from_the_hub_with_its_config(tmp_path, monkeypatch):
    peft(tmp_path)
    (tmp_path / "README.md").touch()
    asked = []

    def snapshot(*_, allow_patterns, **__):
        asked.append(allow_patterns)
        return str(tmp_path)

    names = [path.name for path in tmp_path.iterdir()]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    (found,) = find([("owner/name", 1)])
    assert found.path == tmp_path / "adapter_model.safetensors" and found.source == "owner/name"
    assert asked == [["adapter_model.safetensors", "adapter_config.json"]]
    assert factor(found.path) == 2

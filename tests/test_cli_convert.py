"""`reground-jax info` and `convert`."""

import json
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from reground_jax.cli import convert, main
from reground_jax.model import (
    read_model,
)
from tests.command import DATA, one_error
from tests.originals import write_tiny_tokenizer

pytestmark = pytest.mark.usefixtures("kept_programs")


def test_info_says_what_a_model_is(tiny_model_dir, capsys, compiled):
    assert main(["info", str(tiny_model_dir)]) == 0
    shown = capsys.readouterr().out
    assert main(["info", "--model", str(tiny_model_dir)]) == 0
    assert capsys.readouterr().out == shown
    model = read_model(tiny_model_dir)
    assert model.info["checksum"] in shown and "float32" in shown and "images of 64x64" in shown
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert f"{count:,} parameters" in shown
    assert "4 pairs" in shown  # a fuser on the way down, one in the middle, two on the way up
    fuser = model.params["unet"]["down_blocks"][0]["attentions"][0]["blocks"][0]["fuser"]
    gates = [f"{np.tanh(fuser[name]):+.4f}" for name in ("alpha_attn", "alpha_dense")]
    assert f"down_blocks/0/attentions/0 {' '.join(gates)}" in " ".join(shown.split())
    assert "beta_schedule=scaled_linear" in shown
    assert compiled == []


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory) -> Path:
    """A vocabulary of 256 with the special tokens of the tiny original (begin 0, end 255)."""
    return write_tiny_tokenizer(tmp_path_factory.mktemp("original") / "tokenizer")


def convert_original(destination: Path, tokenizer: Path, *options: str) -> list[str]:
    source = DATA / "original_text_box_tiny.bin"
    return ["convert", str(source), str(destination), "--tokenizer", str(tokenizer), *options]


def test_convert_writes_a_model_and_reports_on_it(byte_tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = convert_original(Path("tiny"), byte_tokenizer, "--dtype", "bfloat16")  # a relative path
    assert main(argv) == 0
    printed = capsys.readouterr()
    info = read_model(tmp_path / "tiny").info
    assert info["checksum"] in printed.out and "bfloat16" in printed.out
    assert "original_text_box_tiny.bin (original)" in printed.out
    assert "GLIGEN, grounded by text in boxes (text)" in printed.out
    assert "converting: 100%" in printed.err
    assert "already exists" in one_error(capsys, argv)


def fake_verify(monkeypatch, errors: dict[str, float]) -> list:
    """Stands in for `convert/verification.py`, which needs torch and minutes."""
    calls = []

    def verify(source, destination, **options):
        calls.append((source, destination, options))
        return errors

    module = types.SimpleNamespace(verify=verify, TOLERANCE=1e-4)
    monkeypatch.setitem(sys.modules, "reground_jax.convert.verification", module)
    return calls


@pytest.mark.parametrize(
    ("error", "code"),
    [(1e-4, 0), (1.01e-4, 1), (float("nan"), 1)],  # at the tolerance, just above it, unordered
)
def test_verify_exits_with_1_above_its_tolerance(
    error, code, byte_tokenizer, tmp_path, capsys, monkeypatch
):
    calls = fake_verify(monkeypatch, {"unet": error, "vae": 0.0})
    argv = convert_original(tmp_path / "m", byte_tokenizer, "--verify")
    assert main(argv) == code
    names = ("adapter", "vae", "clip", "projection", "first_conv", "variant")
    given = dict.fromkeys(names) | {"loras": [], "embeddings": []}
    assert calls == [(argv[1], tmp_path / "m", given)]
    assert f"unet differs by {error:.1e}" in capsys.readouterr().out


def test_verify_without_torch_says_so_before_converting(
    byte_tokenizer, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(convert, "VERIFIERS", ("json", "no_such_library"))
    argv = convert_original(tmp_path / "m", byte_tokenizer, "--verify")
    message = one_error(capsys, argv)
    assert "no_such_library is not installed" in message and "reground-jax[verify]" in message
    assert not (tmp_path / "m").exists()


def test_sources_that_cannot_be_converted_are_refused(byte_tokenizer, tmp_path, capsys):
    header = json.dumps({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))  # of 36 bytes
    target = str(tmp_path / "m")
    assert "is truncated" in one_error(capsys, ["convert", str(cut), target])
    assert "nowhere does not exist" in one_error(capsys, ["convert", "nowhere", target])
    argv = convert_original(tmp_path / "m", byte_tokenizer)
    assert "dtype is 'int8'" in one_error(capsys, [*argv, "--dtype", "int8"])
    assert "nowhere does not exist" in one_error(capsys, [*argv, "--adapter", "nowhere"])
    argv = convert_original(tmp_path / "m", tmp_path / "nowhere")
    assert "tokenizer" in one_error(capsys, argv)
    assert not list(tmp_path.glob("*m*/"))  # nothing is left half-written


def test_a_plain_stable_diffusion_folder_is_refused(tmp_path, capsys):
    from tests import reference

    reference.write_diffusers(tmp_path / "sd", "sd1", attention_type="default")
    message = one_error(capsys, ["convert", str(tmp_path / "sd"), str(tmp_path / "m")])
    assert "plain Stable Diffusion checkpoint" in message and "--adapter" in message

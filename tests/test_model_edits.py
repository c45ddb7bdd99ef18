"""config.json and tokenizer.json, edited by hand, by a stranger or by a bad disk.

Each edit gives a one-sentence error that names the file, before any array is read.
"""

import builtins
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reground_jax.convert.locate import BUILT_IN, MODELS
from reground_jax.model import read_model
from reground_jax.storage.checkpoint import CheckpointError
from reground_jax.storage.description import FORMAT, checksums, read_description

FILES = ("config.json", "tokenizer.json")


@pytest.fixture
def directory(tmp_path) -> Path:
    """The two files of the built-in model in today's format; no test here reads its arrays."""
    _, info, groups, base, tokenizer, *_ = description = read_description(MODELS / "emoji")
    info = info | checksums(description.config, tokenizer)
    facts = {"format": FORMAT, "groups": groups, "base": base, "info": info}
    content = facts | description.config.to_json()
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.encode())
    return tmp_path


def change(directory: Path, edit: Callable[[Any], Any], name: str = "config.json") -> None:
    path = directory / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content) or content))


def put(*path_and_value: Any) -> Callable[[Any], None]:
    """put("unet", "num_heads", 0): sets one value."""
    *path, last, value = path_and_value

    def edit(content: Any) -> None:
        for name in path:
            content = content[name]
        content[last] = value

    return edit


def drop(name: str, *path: str | int) -> Callable[[Any], None]:
    def edit(content: Any) -> None:
        for part in path:
            content = content[part]
        del content[name]

    return edit


TEXT = ("text_encoders", 0)
CONFIG_EDITS = {
    "groups text": (put("groups", "x"), "groups is 'x': it must be a whole number"),
    "groups true": (put("groups", True), "groups is True"),
    "groups negative": (put("groups", -1), "groups is -1: it must be from 0"),
    "groups fraction": (put("groups", 1.5), "groups is 1.5"),
    "groups huge": (put("groups", 10**12), "groups is 1000000000000"),
    "no groups": (drop("groups"), "has no 'groups'"),
    "heads 0": (put("unet", "num_heads", [0, 4]), "num_heads is 0: it must be from 1"),
    "heads no list": (put("unet", "num_heads", 4), "num_heads is 4: it must be a list"),
    "heads text": (put("unet", "num_heads", ["4", "4"]), "num_heads is '4': it must be a whole"),
    "heads do not divide": (put("unet", "num_heads", [5, 4]), "do not divide into 5 heads"),
    "heads one too few": (put("unet", "num_heads", [4]), "has 1 entries"),
    "groups do not divide": (put("unet", "norm_groups", 7), "and 7 norm groups"),
    "norm groups 0": (put("unet", "norm_groups", 0), "norm_groups is 0"),
    "no levels": (
        lambda c: c["unet"].update(
            block_channels=[], layers_per_block=[], num_heads=[], down_attention=[],
            up_attention=[],
        ),
        "levels is 0",
    ),
    "attention no boolean": (put("unet", "down_attention", [1, 0]), "it must be true or false"),
    "layers without end": (put("unet", "layers_per_block", [10**6, 1]), "layers_per_block is"),
    "sample size": (put("unet", "sample_size", 10**6), "sample_size is 1000000"),
    "sample size times 8": (put("unet", "sample_size", 8192), "the side of an image"),
    "width infinite": (put("unet", "text_width", float("inf")), "text_width is inf"),
    "width of another model": (put("unet", "text_width", 64), "reads text embeddings of width 64"),
    "channels of pix2pix": (put("unet", "in_channels", 24), "24 input and 12 output channels"),
    "unet a list": (put("unet", []), "it must be a JSON object"),
    "unet null": (put("unet", None), "it must be a JSON object"),
    "unknown field": (put("unet", "adapter", 1), "has no field adapter"),
    "gray images": (put("vae", "image_channels", 1), "image_channels is 1"),
    "another grounding": (put("unet", "grounding", "maps"), "grounding is 'maps': it must be one"),
    "grounding a boolean": (put("unet", "grounding", True), "grounding is True: it must be one"),
    "inpainting of 12 channels": (put("unet", "inpainting", True), "and inpainting is True, but"),
    "inpainting no boolean": (put("unet", "inpainting", 0), "it must be true or false"),
    "channels of inpainting": (put("unet", "in_channels", 25), "inpainting is False, but"),
    "blocks of one level": (put("unet", "transformer_layers", [2]), "transformer_layers has 1 ent"),
    "no blocks": (put("unet", "transformer_layers", [0, 1]), "transformer_layers is 0"),
    "no text encoder": (put("text_encoders", []), "the model has 0 text encoders"),
    "two text encoders": (
        lambda c: c["text_encoders"].append(c["text_encoders"][0]), "the model has 2 text encoders",
    ),
    "text encoders no list": (put("text_encoders", {}), "text_encoders is {}: it must be a list"),
    "text encoder no object": (put("text_encoders", [1]), "a text encoder is 1"),
    "text encoder of one part": (drop("tokenizer", *TEXT), r"has parts \['network'\]"),
    "vae groups": (put("vae", "norm_groups", 5), "do not divide into 5 norm groups"),
    "vae levels": (put("vae", "block_channels", [8] * 40), "levels is 40"),
    "scaling 0": (put("vae", "scaling_factor", 0), "scaling_factor is 0.0"),
    "scaling NaN": (put("vae", "scaling_factor", float("nan")), "scaling_factor is nan"),
    "scaling endless": (put("vae", "scaling_factor", 10**400), "it must be a number"),
    "text heads": (put(*TEXT, "network", "num_heads", 7), "does not divide into 7 heads"),
    "layers of text": (put(*TEXT, "network", "num_layers", 10**9), "num_layers is 1000000000"),
    "activation": (put(*TEXT, "network", "activation", "relu"), "one of 'quick_gelu', 'gelu'"),
    "activation a list": (put(*TEXT, "network", "activation", []), r"activation is \[\]"),
    "end token": (put(*TEXT, "network", "eos_token_id", 5), "end token 5: they must match"),
    "vocabulary": (put(*TEXT, "network", "vocab_size", 2), r"are \(1, 2, 2\), but the text enc"),
    "end beyond": (put(*TEXT, "tokenizer", "eos_token_id", 10**5), "they must match"),
    "start negative": (put(*TEXT, "tokenizer", "bos_token_id", -1), "bos_token_id is -1"),
    "texts too long": (put(*TEXT, "tokenizer", "max_length", 64), "texts are 64 tokens long"),
    "texts without room": (put(*TEXT, "tokenizer", "max_length", 2), "max_length is 2"),
    "train steps": (put("schedule", "num_train_steps", 10**12), "num_train_steps is 10000000"),
    "train steps 0": (put("schedule", "num_train_steps", 0), "num_train_steps is 0"),
    "offset": (put("schedule", "steps_offset", 1000), "steps_offset is 1000"),
    "beta text": (put("schedule", "beta_start", "small"), "beta_start is 'small'"),
    "beta 0": (put("schedule", "beta_start", 0), "betas go from 0.0"),
    "beta 1": (put("schedule", "beta_end", 1), "betas go from"),
    "no signal left": (
        lambda c: c["schedule"].update(beta_start=0.5, beta_end=0.5), "leaves .* of the image",
    ),
    "no signal left before the last": (
        lambda c: c["schedule"].update(beta_start=0.5, beta_end=0.5, rescale_betas_zero_snr=True),
        "leaves .* of the image",
    ),
    "zero SNR of epsilon": (
        lambda c: c["schedule"].update(prediction_type="epsilon", rescale_betas_zero_snr=True),
        "rescale_betas_zero_snr needs prediction_type 'v_prediction'",
    ),
    "zero SNR of one step": (
        lambda c: c["schedule"].update(
            num_train_steps=1, steps_offset=0, rescale_betas_zero_snr=True
        ),
        "rescale_betas_zero_snr needs 2 time steps",
    ),
    "LCM's steps": (
        put("schedule", "original_inference_steps", 1001), "original_inference_steps is 1001",
    ),
    "LCM's scale": (put("schedule", "timestep_scaling", 0), "timestep_scaling is 0.0"),
    "beta schedule": (
        put("schedule", "beta_schedule", "cosine"), "is 'cosine': it must be one of 'linear'",
    ),
    "clip range": (put("schedule", "clip_sample_range", -1), "clip_sample_range is -1"),
    "clip no boolean": (put("schedule", "clip_sample", 0), "it must be true or false"),
    "info a list": (put("info", []), r"info is \[\]: it must be a JSON object"),
    "info null": (put("info", None), "info is None"),
    "no checksum": (drop("checksum", "info"), "has no 'checksum'"),
    "checksum a number": (put("info", "checksum", 7), "info.checksum is 7"),
    "no gates": (drop("gates", "info"), "has no 'gates'"),
    "gates a list": (put("info", "gates", [1]), r"info.gates is \[1\]"),
    "gates of one": (put("info", "gates", "mid", [0.5]), "must be two numbers"),
    "gates endless": (put("info", "gates", "mid", [10**400, 0]), "gates.mid is 1.*a number"),
    "LoRA a text": (put("info", "loras", ["x"]), r"info.loras is \['x'\]: it must list paths"),
    "LoRA at NaN": (
        put("info", "loras", [{"path": "x", "sha256": "y", "scales": [1, float("nan")]}]),
        r"info.loras is \[\{'path'",
    ),
    "NaN a number": (put("info", "nonfinite", 5), "info.nonfinite is 5"),
    "counts a text": (put("info", "parameters", "many"), "info.parameters is 'many'"),
    "a count too few": (drop("grounding", "info", "parameters"), "has no 'grounding'"),
    "bytes null": (put("info", "bytes", None), "count of bytes is None"),
    "part of another version": (put("controlnet", {}), "another version; convert it again"),
    "part too few": (drop("vae"), "another version; convert it again"),
    "format a list": (put("format", []), r"has format \[\]"),
    "another format": (put("format", "reground-jax/0"), "this version reads .*: convert it again"),
    "a newer format": (put("format", "reground-jax/3"), "install a newer reground-jax, or convert"),
    "no format": (drop("format"), "another program's, or damaged"),
    "a list": (lambda content: [content], "another program's, or damaged"),
    "base a number": (put("base", 5), "base is 5"),
    "base empty": (put("base", ""), "base is ''"),
    "base absolute": (put("base", "/etc"), "base is '/etc': it must be relative"),
    "base on a share": (put("base", "//host/share"), "it must be relative"),
    "base on a share, Windows": (put("base", "\\\\host\\share"), "it must be relative"),
    "base with NUL": (put("base", "a\0b"), "it must be the path"),
    "base half a character": (put("base", "\ud800"), "it must be the path"),
    # Legal values that differ from those that were written:
    "prediction type": (put("schedule", "prediction_type", "epsilon"), "config.json was changed"),
    "zero SNR": (put("schedule", "rescale_betas_zero_snr", True), "config.json was changed"),
    "another scale": (put("vae", "scaling_factor", 0.5), "config.json was changed after"),
    "a default": (drop("scaling_factor", "vae"), "config.json was changed after"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), CONFIG_EDITS.values(), ids=CONFIG_EDITS)
def test_an_edit_of_the_config_is_one_sentence(edit, message, directory):
    change(directory, edit)
    assert_refused(directory, message)


def assert_refused(directory: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_model(directory)
    assert str(directory) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 500


CONFIG_BYTES = {
    "deep": (b"[" * 200_000, "nested too deeply"),
    "digits": (b'{"format": ' + b"1" * 10_000 + b"}", "config.json is damaged"),
    "no text": (b"\xff\xfe{", "not UTF-8"),
    "cut": (b'{"format": "reground-jax/1", "gro', "config.json is damaged: Unterminated"),
    "empty": (b"", "config.json is damaged"),
    "huge": (b" " * (2**24 + 1), "larger than 16,777,216 bytes"),
}


@pytest.mark.parametrize(("content", "message"), CONFIG_BYTES.values(), ids=CONFIG_BYTES)
def test_a_damaged_config_is_one_sentence(content, message, directory):
    (directory / "config.json").write_bytes(content)
    assert_refused(directory, message)


def _regex(content: Any) -> None:
    content["normalizer"]["normalizers"][1]["pattern"] = {"Regex": "("}


PADDING = {
    "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 10**6,
    "pad_type_id": 0, "pad_token": "x",
}  # fmt: skip
TRUNCATION = {"max_length": 1, "stride": 5, "strategy": "LongestFirst", "direction": "Right"}
ADDED = {
    "id": 10**6, "content": "<new>", "single_word": False, "lstrip": False, "rstrip": False,
    "normalized": False, "special": True,
}  # fmt: skip
TOKENIZER_EDITS = {
    "ids beyond": (
        lambda c: c["model"].update(vocab={w: n + 10**6 for w, n in c["model"]["vocab"].items()}),
        "has 117 tokens that the text encoder does not have",
    ),
    "one id beyond": (put("model", "vocab", "cat", 4096), "'cat' with id 4096, but ids end at"),
    "an id below 0": (put("model", "vocab", "cat", -1), "expected u32"),
    "unknown token": (put("model", "unk_token", "<none>"), "UNK"),
    "model": (put("model", "type", "Magic"), "cannot be used"),
    "no model": (drop("model"), "cannot be used"),
    "a list": (lambda content: [content], "cannot be used: invalid type"),
    "pattern": (_regex, "cannot be used"),
    "pads": (put("padding", PADDING), "truncates or pads texts"),
    "cuts": (put("truncation", TRUNCATION), "truncates or pads texts"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), TOKENIZER_EDITS.values(), ids=TOKENIZER_EDITS)
@pytest.mark.parametrize("recorded", [True, False], ids=["checksum", "no checksum"])
def test_an_edit_of_the_tokenizer_is_one_sentence(edit, message, recorded, directory):
    if not recorded:  # as in directories of earlier versions: only the content can be checked
        change(directory, drop("tokenizer_checksum", "info"))
    change(directory, edit, "tokenizer.json")
    assert_refused(directory, "tokenizer.json was changed" if recorded else message)


def test_a_legal_vocabulary_that_is_another_is_refused(directory):
    change(directory, put("model", "vocab", "cat", 5), "tokenizer.json")
    assert_refused(directory, "tokenizer.json was changed after the model was written")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 200_000])
@pytest.mark.parametrize("recorded", [True, False], ids=["checksum", "no checksum"])
def test_a_damaged_tokenizer_is_one_sentence(content, recorded, directory):
    if not recorded:
        change(directory, drop("tokenizer_checksum", "info"))
    (directory / "tokenizer.json").write_bytes(content)
    assert_refused(directory, "tokenizer.json")


@pytest.mark.parametrize("name", FILES)
def test_special_files_do_not_block(name, directory):
    (directory / name).unlink()
    os.mkfifo(directory / name)
    assert_refused(directory, "a pipe, not a file")
    (directory / name).unlink()
    (directory / name).symlink_to("/dev/zero")
    assert_refused(directory, "a device, not a file")
    (directory / name).unlink()
    (directory / name).mkdir()
    assert_refused(directory, "a folder, not a file")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_may_not_be_read_is_named(name, directory, monkeypatch):
    """Patched, because tests may run as root, who may read everything."""

    def deny(path, *arguments, **options):
        if Path(path) == directory / name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    opened = builtins.open
    monkeypatch.setattr(builtins, "open", deny)
    assert_refused(directory, f"{name}.* Permission denied")


def test_a_byte_order_mark_is_passed_over(directory):
    """Editors on Windows write one."""
    before = read_description(directory)
    for name in FILES:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(b"\xef\xbb\xbf" + content)
    assert read_description(directory) == before


def test_an_equivalent_config_is_not_a_change(directory):
    """Formatting, the order of fields, 1 for 1.0, and defaults that are left out or spelled out."""
    change(directory, drop("config_checksum", "info"))
    change(directory, put("schedule", "clip_sample_range", 1.0))
    before = read_description(directory)

    def respell(content: dict[str, Any]) -> dict[str, Any]:
        content["schedule"]["clip_sample_range"] = 1
        del content["schedule"]["num_train_steps"]  # 1000, the default
        return dict(reversed(content.items()))

    change(directory, respell)
    after = read_description(directory)
    assert after.config == before.config and after.checksum == before.checksum


def test_the_checksum_of_a_model_covers_arrays_config_and_tokenizer(directory):
    first = read_description(directory)
    seen = {first.checksum, first.info["checksum"]}
    for name in ("config_checksum", "tokenizer_checksum"):
        change(directory, drop(name, "info"))
    assert read_description(directory).checksum in seen  # what is recorded does not count
    change(directory, put("schedule", "prediction_type", "epsilon"))
    change(directory, put("model", "vocab", "cat", 5), "tokenizer.json")
    for edit, name in (
        (lambda content: None, "config.json"),
        (put("model", "vocab", "cat", 6), "tokenizer.json"),
        (put("info", "checksum", "0" * 64), "config.json"),
    ):
        change(directory, edit, name)
        description = read_description(directory)
        assert description.checksum not in seen
        seen.add(description.checksum)


def test_the_arrays_checksum_of_earlier_versions_still_means_the_model(directory):
    description = read_description(directory)
    assert description.has_checksum(description.checksum)
    assert description.has_checksum(description.info["checksum"])
    assert not description.has_checksum("0" * 64)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_models_record_what_they_are(name):
    assert {"config_checksum", "tokenizer_checksum", "sums"} <= set(
        read_description(MODELS / name).info
    )

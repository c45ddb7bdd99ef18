"""Damaged and malicious files of a diffusers folder: each ends with one clear ValueError.

Each is an edit of a model that converts: numbers of a wrong type, huge or negative, lists in place
of numbers, nested brackets. None of these may lead to an allocation, a loop or a traceback.
"""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from reground_jax.convert import configs
from reground_jax.convert.conversion import convert, gather
from reground_jax.convert.sources import resolve
from reground_jax.convert.tokenizers import build_tokenizer
from tests import reference

NESTED = "[" * 100_000
HUGE = 10**30
UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, TOKENS = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
ADDED, SPECIAL = "tokenizer/added_tokens.json", "tokenizer/special_tokens_map.json"
VOCAB, MERGES, READY = "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer.json"
CONFIGS = (UNET, VAE, TEXT, SCHEDULER, TOKENS, SPECIAL, ADDED, VOCAB, READY)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model that converts; no test changes it."""
    folder = tmp_path_factory.mktemp("model") / "model"
    reference.write_diffusers(folder, "small")
    return folder


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """The model with its own configs and tokenizer, and links to its weights."""
    link = tmp_path / "model"
    shutil.copytree(model, link, copy_function=_link_weights)
    return link


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)


def refusal(folder: Path) -> str:
    """The sentence that a conversion ends with, after checking that nothing else is left."""
    with pytest.raises(ValueError) as caught:
        convert(folder, folder.parent / "ours")
    sentence = str(caught.value)
    # KeyMismatch lists its tensors, one per line.
    assert "\n" not in sentence.split("tensors do not fit")[0] and len(sentence) < 20_000
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    return sentence


FIELDS = [
    # U-Net
    (UNET, "in_channels", "four"),
    (UNET, "in_channels", True),
    (UNET, "in_channels", -4),
    (UNET, "out_channels", 0),
    (UNET, "out_channels", [4]),
    (UNET, "block_out_channels", 320),
    (UNET, "block_out_channels", []),
    (UNET, "block_out_channels", [32, "64"]),
    (UNET, "block_out_channels", [32, HUGE]),
    (UNET, "block_out_channels", [[32], [64]]),
    (UNET, "block_out_channels", [32] * 10_000),
    (UNET, "layers_per_block", 0),
    (UNET, "layers_per_block", 10**9),
    (UNET, "layers_per_block", [1, None]),
    (UNET, "layers_per_block", {"0": 1}),
    (UNET, "layers_per_block", [1]),
    (UNET, "attention_head_dim", 0),
    (UNET, "attention_head_dim", -8),
    (UNET, "attention_head_dim", 3),
    (UNET, "attention_head_dim", 4.0),
    (UNET, "down_block_types", "CrossAttnDownBlock2D"),
    (UNET, "down_block_types", [["CrossAttnDownBlock2D"], "DownBlock2D"]),
    (UNET, "down_block_types", [{}, 1]),
    (UNET, "down_block_types", ["DownBlock2D"] * 3),
    (UNET, "cross_attention_dim", []),
    (UNET, "cross_attention_dim", "24"),
    (UNET, "cross_attention_dim", [24, [24]]),
    (UNET, "norm_num_groups", 0),
    (UNET, "norm_num_groups", 7),
    (UNET, "norm_num_groups", 1.5),
    (UNET, "sample_size", 10**6),
    (UNET, "sample_size", [8, 8, 8, 8, 8, 8, 8, 8, 8]),
    (UNET, "sample_size", 0),
    (UNET, "attention_type", ["gated"]),
    (UNET, "use_gated_attention", "yes"),
    (UNET, "freq_shift", [[0]]),
    (UNET, "_class_name", ["UNet2DConditionModel"]),
    (UNET, "novelty", [[[[[[[[[["deep"]]]]]]]]]]),
    (UNET, "x" * 100_000, "x" * 100_000),
    # VAE
    (VAE, "block_out_channels", "wide"),
    (VAE, "block_out_channels", [16, 32, 32, 33]),
    (VAE, "block_out_channels", [0, 0, 0, 0]),
    (VAE, "layers_per_block", [1, 1, 1, 1]),
    (VAE, "layers_per_block", HUGE),
    (VAE, "latent_channels", -1),
    (VAE, "norm_num_groups", 0),
    (VAE, "scaling_factor", "0.18"),
    (VAE, "scaling_factor", 0),
    (VAE, "scaling_factor", float("nan")),
    (VAE, "scaling_factor", float("inf")),
    (VAE, "up_block_types", [None] * 4),
    # text encoder
    (TEXT, "vocab_size", 10**12),
    (TEXT, "vocab_size", -1),
    (TEXT, "vocab_size", "1000"),
    (TEXT, "hidden_size", 25),
    (TEXT, "hidden_size", [24]),
    (TEXT, "num_hidden_layers", 10**7),
    (TEXT, "num_attention_heads", 0),
    (TEXT, "num_attention_heads", 5),
    (TEXT, "intermediate_size", {}),
    (TEXT, "max_position_embeddings", 0),
    (TEXT, "max_position_embeddings", 10**10),
    (TEXT, "hidden_act", ["gelu"]),
    (TEXT, "hidden_act", 1),
    (TEXT, "eos_token_id", [999]),
    (TEXT, "eos_token_id", -1),
    (TEXT, "eos_token_id", HUGE),
    # scheduler
    (SCHEDULER, "num_train_timesteps", 10**12),
    (SCHEDULER, "num_train_timesteps", 0),
    (SCHEDULER, "num_train_timesteps", "1000"),
    (SCHEDULER, "beta_start", -0.1),
    (SCHEDULER, "beta_end", 2),
    (SCHEDULER, "beta_end", float("nan")),
    (SCHEDULER, "beta_schedule", {"a": 1}),
    (SCHEDULER, "prediction_type", ["epsilon"]),
    (SCHEDULER, "timestep_spacing", 3),
    (SCHEDULER, "steps_offset", -5),
    (SCHEDULER, "steps_offset", 1e9),
    (SCHEDULER, "set_alpha_to_one", "no"),
    (SCHEDULER, "clip_sample_range", -1),
    (SCHEDULER, "skip_prk_steps", 1),
    (SCHEDULER, "_class_name", {"PNDMScheduler": 1}),
    # tokenizer
    (TOKENS, "bos_token", 5),
    (TOKENS, "eos_token", {"text": "<|endoftext|>"}),
    (TOKENS, "pad_token", ["!"]),
    (TOKENS, "pad_token", "\ud83d"),
    (TOKENS, "model_max_length", -77),
    (TOKENS, "model_max_length", 2),
    (TOKENS, "model_max_length", "77"),
    (TOKENS, "padding_side", "left"),
    (TOKENS, "truncation_side", "left"),
    (TOKENS, "split_special_tokens", True),
    (TOKENS, "tokenizer_class", "T5Tokenizer"),
    (TOKENS, "added_tokens_decoder", []),
    (TOKENS, "added_tokens_decoder", {"x": {"content": "<x>"}}),
    (TOKENS, "added_tokens_decoder", {"1000": "<x>"}),
    (TOKENS, "added_tokens_decoder", {"1000": {"content": "<x>", "special": "no"}}),
    (TOKENS, "added_tokens_decoder", {"9" * 5000: {"content": "<x>"}}),
    (TOKENS, "additional_special_tokens", 7),
    (TOKENS, "additional_special_tokens", [None]),
    (SPECIAL, "bos_token", {}),
    (SPECIAL, "eos_token", [[]]),
    (ADDED, "<x>", "1000"),
    (ADDED, "<x>", -1),
    (ADDED, "<x>", HUGE),
    (ADDED, "<x>", 5000),  # leaves a gap, which no tokenizer can have
    (ADDED, "", 1000),
    (VOCAB, "a</w>", "320"),
    (VOCAB, "a</w>", -1),
    (VOCAB, "a</w>", 2**40),
    (VOCAB, "a</w>", 3_000_000),
    (VOCAB, "a</w>", [1]),
    (VOCAB, "a</w>", 5),  # another token's id
]


@pytest.mark.parametrize(("file", "field", "value"), FIELDS)
def test_a_field_of_a_wrong_kind_or_size_is_refused(folder, file, field, value):
    path = folder / file
    fields = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(fields | {field: value}))
    if file == TOKENS:  # which would override it
        (folder / SPECIAL).unlink()
    refusal(folder)


@pytest.mark.parametrize("file", CONFIGS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON: Expecting value"),
        (b'{"a": 1', "is not JSON: Expecting"),
        (b"[1, 2]", "holds a list, expected a JSON object|is not a tokenizer"),
        (b"7", "holds a int, expected a JSON object|is not a tokenizer"),
        (NESTED.encode(), "is not JSON: its brackets are nested too deeply"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "is not JSON: Exceeds the limit"),
        (b'{"a": "\xff"}', "is not JSON: byte 7 is not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not JSON"),
    ],
    ids="empty cut list number nested digits bytes pointer".split(),
)
def test_a_config_that_is_no_json_object_is_named_with_the_reason(folder, file, content, reason):
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        convert(folder, folder.parent / "ours")
    assert file in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "each line should be two tokens"),
        (b"i n\nt h e\n", "each line should be two tokens"),
        (b"i n\n\xff \xfe\n", "is not a merges file .*codec can't decode"),
        (b"q zz\n", "vocabulary and merges do not match"),
        (b"\x1f\x8b", "is not a merges file"),
        (gzip.compress(bytes(2**27)), "is not a merges file .*more than 64 MiB"),  # 128 KB of file
    ],
    ids="empty three bytes unknown cut bomb".split(),
)
def test_a_damaged_merges_file_is_named_with_the_reason(folder, content, reason):
    (folder / MERGES).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        convert(folder, folder.parent / "ours")


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {"type": "BPE"}},
        {"model": {"type": "Novel", "vocab": {}, "merges": []}},
        {"normalizer": 5},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Removed"}},
        {"added_tokens": "none"},
        {"added_tokens": [{"id": 2**40, "content": "<x>"}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_damaged_tokenizer_json_is_named(folder, change):
    built = build_tokenizer(folder / "tokenizer")
    (folder / READY).write_text(json.dumps(json.loads(built.json) | change))
    assert READY in refusal(folder)


def test_model_index_is_not_read_whatever_is_in_it(folder):
    configs_of = []
    for content in (NESTED, "[]", json.dumps({"_class_name": 5, "unet": {"a": []}})):
        (folder / "model_index.json").write_text(content)
        configs_of.append(gather(resolve(folder)).config)
    (folder / "model_index.json").unlink()
    assert configs_of == [gather(resolve(folder)).config] * 3


def test_a_null_field_counts_as_left_out(folder):
    fields = json.loads((folder / UNET).read_text())
    with_nulls = fields | dict.fromkeys(("in_channels", "out_channels", "attention_type"))
    assert configs.unet_config(with_nulls) == configs.unet_config(
        {k: v for k, v in fields.items() if with_nulls[k] is not None}
    )
    assert configs.noise_schedule({"_class_name": None, "beta_start": None}).beta_start == 0.0001

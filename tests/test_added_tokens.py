"""Tokens added to CLIP's vocabulary, in every file that may list them: the ids are transformers'.

The test case is a folder saved by diffusers' textual inversion with transformers 4: 526 tokens, of
which begin is 524 and end 525, and the learned <cat-toy>, 526.
"""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from reground_jax.convert.conversion import convert
from reground_jax.convert.hub import tokenizer_files
from reground_jax.convert.tokenizers import build_tokenizer
from reground_jax.model import read_model
from tests import reference

CASE = reference.DATA / "cases" / "tokenizer-added-tokens"
TEXTS = [
    "a <cat-toy>",
    "A <CAT-TOY> on<cat-toy>!",
    "<|ENDOFTEXT|> and <|endoftext|>",
    "a cat!",
    "<x> y <X> <x>",
    "<pad> z",
]
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True}
BEGIN = {"content": "<|startoftext|>", **FLAGS}
END = {"content": "<|endoftext|>", **FLAGS}
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


def folder_with(path: Path, files: dict[str, dict]) -> Path:
    """The test case with some files replaced."""
    shutil.copytree(CASE, path)
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path


def ids(built, text: str) -> list[int]:
    return Tokenizer.from_str(built.json).encode(text).ids


def test_a_token_of_a_textual_inversion_has_the_id_that_was_learned():
    built = build_tokenizer(CASE)
    assert ids(built, "a <cat-toy>") == [524, 320, 526, 525]
    assert built.size == 527


@pytest.mark.parametrize(
    "files",
    [
        {},
        {SPECIAL: {"bos_token": BEGIN, "eos_token": END, "pad_token": "<|endoftext|>"}},
        {SPECIAL: {"additional_special_tokens": ["<x>"]}},
        {CONFIG: {"additional_special_tokens": ["<cat-toy>"]}},  # then it keeps its case
        {SPECIAL: {"extra_special_tokens": ["<cat-toy>"]}},
        {SPECIAL: {"extra_special_tokens": ["<x>"]}},
        {SPECIAL: {"additional_special_tokens": ["<cat-toy>"]}},
        {SPECIAL: {"pad_token": "<pad>"}},  # in no file: the next free id
        {SPECIAL: {"pad_token": "!"}},
        {SPECIAL: {"unk_token": "<x>"}},
        {CONFIG: {"mask_token": "<x>", "image_token": "<pad>"}},
        {CONFIG: {"do_lower_case": False, "add_prefix_space": True, "add_bos_token": False}},
        {ADDED: {"<x>": 527, "<cat-toy>": 526, "<pad>": 528}, SPECIAL: {"pad_token": "<pad>"}},
        # From transformers 4.34 on; the other files are then not read.
        {
            CONFIG: {
                "pad_token": "!",
                "added_tokens_decoder": {
                    "525": END | {"special": True},
                    "524": BEGIN | {"special": True},
                    "526": {"content": "<x>", **FLAGS, "normalized": False},
                    "0": {"content": "!", **FLAGS, "normalized": False, "special": True},
                },
            },
            SPECIAL: {"pad_token": "<|endoftext|>"},
        },
        {CONFIG: {"added_tokens_decoder": {}}, SPECIAL: {"pad_token": "!"}},
    ],
)
def test_ids_are_those_of_transformers_whichever_file_has_them(tmp_path, files):
    folder = folder_with(tmp_path / "tokenizer", files)
    oracle, built = CLIPTokenizer.from_pretrained(folder), build_tokenizer(folder)
    for text in TEXTS:
        assert ids(built, text) == oracle(text).input_ids, text
    assert built.config.pad_token_id == oracle.pad_token_id
    assert built.size == len(oracle)


def test_tokens_added_to_a_tokenizer_json_are_read(tmp_path):
    plain = build_tokenizer(folder_with(tmp_path / "plain", {ADDED: {}}))
    folder = folder_with(tmp_path / "fast", {})
    (folder / "tokenizer.json").write_text("\ufeff" + plain.json, encoding="utf-8")
    oracle = build_tokenizer(CASE)
    assert [ids(build_tokenizer(folder), t) for t in TEXTS] == [ids(oracle, t) for t in TEXTS]


def test_an_id_that_the_vocabulary_leaves_no_room_for_is_refused(tmp_path):
    folder = folder_with(tmp_path / "tokenizer", {ADDED: {"<cat-toy>": 530}})
    with pytest.raises(ValueError, match="'<cat-toy>' should have the id 530, but .* give it 526"):
        build_tokenizer(folder)


def test_added_tokens_come_with_a_tokenizer_from_the_hub():
    names = ["vocab.json", "merges.txt", "added_tokens.json", "model.safetensors"]
    assert tokenizer_files(names) == ["vocab.json", "merges.txt", "added_tokens.json"]


# ---- the vocabulary and the text encoder's rows


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """A model whose text encoder has learned one token in addition to its 1000."""
    folder = tmp_path_factory.mktemp("learned") / "model"
    reference.write_diffusers(folder, "small")
    text = reference.text_encoder("small", vocab_size=1001)
    text.save_pretrained(folder / "text_encoder")
    return folder


def with_tokens(learned: Path, path: Path, tokens: dict[str, int]) -> Path:
    shutil.copytree(learned, path)
    (path / "tokenizer" / ADDED).write_text(json.dumps(tokens))
    return path


def test_a_learned_token_comes_through_a_conversion(tmp_path, learned):
    folder = with_tokens(learned, tmp_path / "model", {"<cat-toy>": 1000})
    convert(folder, tmp_path / "ours")  # a warning would be an error here
    model = read_model(tmp_path / "ours")
    assert Tokenizer.from_str(model.tokenizer_json).encode("<cat-toy>").ids == [998, 1000, 999]
    assert model.params["text_encoder"]["token_embedding"]["embedding"].shape[0] == 1001


def test_a_vocabulary_smaller_than_the_text_encoder_gives_a_warning(tmp_path, learned):
    message = r"has 1000 tokens, but the text encoder has 1001: .* the last 1; .*added_tokens"
    with pytest.warns(UserWarning, match=message):
        convert(with_tokens(learned, tmp_path / "model", {}), tmp_path / "ours")


def test_ids_beyond_the_text_encoder_are_refused(tmp_path, learned):
    folder = with_tokens(learned, tmp_path / "model", {"<cat-toy>": 1000, "<dog-toy>": 1001})
    with pytest.raises(ValueError, match="has 1002 tokens, but the text encoder has only 1001"):
        convert(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (folder / "tokenizer" / ADDED).unlink()
        with pytest.raises(UserWarning):
            convert(folder, tmp_path / "ours")

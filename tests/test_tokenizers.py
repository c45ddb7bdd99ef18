"""CLIP's tokenizer from each form of its vocabulary; transformers' CLIPTokenizer is the oracle."""

import gzip
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from reground_jax.conditioning import Texts
from reground_jax.config import TokenizerConfig
from reground_jax.convert.tokenizers import build_tokenizer
from reground_jax.emoji.tokenizer import emoji_tokenizer
from reground_jax.emoji.world import WorldConfig

MERGES = Path(__file__).parent / "data" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
START, END = 49406, 49407  # the last two of 49,408 tokens

PROMPTS = [
    "a teddy bear sitting next to a bird",
    "A Photo, of TWO dogs & 3 cats!!",
    "it's the dog's bowl; they'll say we've 'd I'm",
    "  several   blanks\tand\nlines\u00a0wide  ",
    "café naïve Ångström coöperate",
    "cafe\u0301 with a combining accent",
    "emoji 🐻🎈 and ❤️",
    "東京タワー Москва Ελλάδα",
    "room 1234, 3.14 and ½",
    "<|endoftext|> in a prompt",
    "<|ENDOFTEXT|> shouted",
    "under_score-hyphen/slash\\back @#$%^*()",
    "\x00\x7f control",
    "",
    "supercalifragilisticexpialidocious " * 12,
]


@pytest.fixture(scope="module")
def real():
    return build_tokenizer(MERGES)


@pytest.fixture(scope="module")
def vocabulary(real):
    """Vocabulary and merges of CLIP in the form that transformers takes."""
    model = json.loads(real.json)["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def ids(built, text):
    return Tokenizer.from_str(built.json).encode(text).ids


def hub_folder(path, vocabulary, **settings):
    """vocab.json and merges.txt as on the Hub, and the files with special tokens."""
    vocab, merges = vocabulary
    path.mkdir(parents=True)
    (path / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    for name, fields in settings.items():
        (path / f"{name}.json").write_text(json.dumps(fields))
    return path


# Token ids that CLIP's own tokenizer (SimpleTokenizer of open_clip 3.3.0) gives.
@pytest.mark.parametrize(
    ("text", "golden"),
    [
        ("a teddy bear sitting next to a bird", [320, 11798, 4298, 4919, 1131, 531, 320, 3329]),
        ("a cat!", [320, 2368, 256]),
        ("", []),
        (
            "it's the dog's bowl, they'll say",
            [585, 568, 518, 1929, 568, 3814, 267, 889, 1342, 1451],
        ),
        ("café naïve", [15304, 1097, 35689, 563]),
        ("emoji 🐻🎈", [16327, 30750, 14448]),
        ("room 1234  and\t3.14", [1530, 272, 273, 274, 275, 537, 274, 269, 272, 275]),
    ],
)
def test_golden_ids_of_the_real_vocabulary(real, text, golden):
    assert ids(real, text) == [START, *golden, END]


def test_the_vocabulary_has_clips_order(real, vocabulary):
    vocab, merges = vocabulary
    assert len(vocab) == 49408 and len(merges) == 48894
    # bytes, then bytes at a word's end, then merges, then the special two
    order = {"!": 0, "a": 64, "!</w>": 256, "a</w>": 320, "in": 512, "jekyll</w>": 49405}
    assert {token: vocab[token] for token in order} == order
    assert vocab["<|startoftext|>"] == START and vocab["<|endoftext|>"] == END
    assert real.config == TokenizerConfig(77, START, END, END)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_ids_equal_those_of_transformers(vocabulary, pad):
    vocab, merges = vocabulary
    oracle = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad)
    built = build_tokenizer(MERGES, pad_token=pad)
    ours = Tokenizer.from_str(built.json)
    for prompt in PROMPTS:
        assert ours.encode(prompt).ids == oracle(prompt).input_ids, prompt
    assert built.config.pad_token_id == oracle.pad_token_id


def test_nothing_is_cut_or_padded(real):
    long = Tokenizer.from_str(real.json).encode_batch(["a " * 100, "a"])
    assert [len(text.ids) for text in long] == [102, 3]  # with begin and end


def test_a_hub_folder_gives_the_same_tokenizer(tmp_path, vocabulary, real):
    """As in Stable Diffusion 1.4: special tokens with flags, padded with end-of-text."""
    end = {"content": "<|endoftext|>", "single_word": False, "lstrip": False, "normalized": True}
    special = {"bos_token": end | {"content": "<|startoftext|>"}, "eos_token": end}
    folder = hub_folder(
        tmp_path / "tokenizer",
        vocabulary,
        special_tokens_map=special | {"pad_token": "<|endoftext|>", "unk_token": end},
        tokenizer_config={
            "model_max_length": 77,
            "pad_token": "<|endoftext|>",
            "errors": "replace",
        },
    )
    built = build_tokenizer(folder)
    assert built.config == real.config
    assert [ids(built, text) for text in PROMPTS] == [ids(real, text) for text in PROMPTS]
    assert build_tokenizer(tmp_path).config == real.config  # the folder above it


def test_sd2_pads_with_an_exclamation_mark(tmp_path, vocabulary):
    folder = hub_folder(
        tmp_path / "tokenizer",
        vocabulary,
        special_tokens_map={"pad_token": "!"},
        tokenizer_config={"model_max_length": 77, "pad_token": "<|endoftext|>"},  # overruled
    )
    built = build_tokenizer(folder)
    assert built.config == TokenizerConfig(77, START, END, pad_token_id=0)
    assert ids(built, "a cat!") == [START, 320, 2368, 0, END]  # special, so not "!</w>", 256
    oracle = CLIPTokenizer.from_pretrained(folder)
    assert [ids(built, text) for text in PROMPTS] == [oracle(text).input_ids for text in PROMPTS]
    assert built.config.pad_token_id == oracle.pad_token_id


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_a_folder_that_transformers_saves_gives_the_same_tokenizer(tmp_path, vocabulary, pad):
    vocab, merges = vocabulary
    oracle = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)
    # Calls leave cutting and padding behind in the saved file.
    oracle("a", padding="max_length", truncation=True, max_length=5)
    oracle.save_pretrained(tmp_path)
    built = build_tokenizer(tmp_path)
    assert built.config == TokenizerConfig(77, START, END, {"!": 0}.get(pad, END))
    assert json.loads(built.json)["truncation"] is None
    assert json.loads(built.json)["padding"] is None
    for prompt in PROMPTS:
        assert ids(built, prompt) == oracle(prompt).input_ids, prompt


def test_an_unset_length_is_clips(tmp_path, vocabulary):
    folder = hub_folder(
        tmp_path / "t", vocabulary, tokenizer_config={"model_max_length": int(1e30)}
    )
    assert build_tokenizer(folder).config.max_length == 77


def test_words_that_a_model_does_not_know_are_named():
    text, config = emoji_tokenizer(WorldConfig())
    texts = Texts(text, config)
    with pytest.warns(UserWarning, match=r"vocabulary: 'unicorn', 'moon'; use other words"):
        texts.ids(["a unicorn and a cat", "a unicorn on the moon"])


def test_clips_vocabulary_knows_everything(real):
    texts = Texts(real.json, real.config)
    assert texts.ids(["a unicorn ☃ 🦄"]).shape == (1, 77)  # a warning would be an error here


def test_a_small_vocabulary_works(tmp_path):
    lines = gzip.decompress(MERGES.read_bytes()).decode().split("\n")[:11]
    path = tmp_path / "merges.txt"
    path.write_text("\n".join(lines))
    built = build_tokenizer(path)
    # 256 bytes twice, ten merges (the first line is the version), two special tokens
    assert built.config == TokenizerConfig(77, 522, 523, 523)
    assert len(json.loads(built.json)["model"]["vocab"]) == 524


def test_bad_tokenizers_are_refused_with_the_way_out(tmp_path, vocabulary):
    with pytest.raises(ValueError, match=r"looked for tokenizer\.json, or vocab\.json"):
        build_tokenizer(tmp_path)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(MERGES.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.gz is not a merges file"):
        build_tokenizer(cut)
    (tmp_path / "text.txt").write_text("three words here")
    with pytest.raises(ValueError, match="each line should be two tokens"):
        build_tokenizer(tmp_path / "text.txt")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        build_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="has no pad_token '<pad>'"):
        build_tokenizer(MERGES, pad_token="<pad>")
    folder = hub_folder(tmp_path / "t", ({"a": 0}, [("q", "r")]))
    with pytest.raises(ValueError, match="vocabulary and merges do not match"):
        build_tokenizer(folder)

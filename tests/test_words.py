"""Phrases are found in prompts as a reader would find them."""

import dataclasses

import numpy as np
import pytest

from reground_jax import Layout
from reground_jax.conditioning import Texts
from reground_jax.words import phrase_span
from tests.models import tiny_model

MODEL = tiny_model()
TEXTS = Texts(MODEL.tokenizer_json, MODEL.config.text_encoder.tokenizer)


@pytest.mark.parametrize(
    ("prompt", "phrase", "found"),
    [
        ("a cat and a dog", "a dog", "dog"),
        ("A Cat and a dog", "the cat", "Cat"),
        ("a  red \n car", "red car", "red \n car"),
        ("concatenate a cat", "cat", "cat"),  # whole words only
        ("three cats", "cat", "cats"),
        ("a cat", "cats", "cat"),
        ("two boxes", "a box", "boxes"),
        ("two ponies", "pony", "ponies"),
        ("a pony", "ponies", "pony"),
        ("a red car", "old blue cars", "car"),  # the last word alone
        ("a cat's bowl", "cat", "cat"),
        ("an orange (ripe) on a table", "(ripe)", "(ripe)"),
        ("a cat", "dog", None),
        ("a cat", "a", "a"),  # nothing is left without the article
        ("", "cat", None),
    ],
)
def test_a_phrase_is_found_as_whole_words(prompt, phrase, found):
    span = phrase_span(prompt, phrase)
    assert (None if span is None else prompt[slice(*span)]) == found


def test_equal_phrases_take_one_place_after_the_other():
    prompt = "a cat, a dog and the cat"
    spans = [phrase_span(prompt, "cat", k) or (0, 0) for k in range(3)]
    assert [prompt[slice(*span)] for span in spans] == ["cat"] * 3
    assert spans[0] < spans[1] == spans[2]


def words(layouts, missing="error", texts=TEXTS):
    return texts.words(layouts, max_boxes=4, missing=missing)


def decoded(layout: Layout) -> list[str]:
    """The characters of each box's tokens."""
    found = words([layout])
    offsets = TEXTS.tokenizer.encode(layout.prompt, add_special_tokens=False).offsets
    return [
        "".join(layout.prompt[slice(*offsets[index - 1])] for index in np.flatnonzero(row))
        for row in found.tokens[0]
    ]


def test_tokens_are_those_of_the_words_found():
    boxes = [(0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 0.5)]
    layout = Layout("a cat and a dog by the cat", ["a cat", "the dog", "cat"], boxes)
    assert decoded(layout)[:2] == ["cat", "dog"]
    found = words([layout]).tokens[0]
    assert found[2].any() and (found[2] != found[0]).any()  # the second cat
    np.testing.assert_array_equal(words([layout]).boxes[0, :3], boxes)


def test_a_missing_phrase_is_an_error_with_ways_out_or_skipped():
    layout = Layout("a cat", ["a cat", "a dog"], [(0, 0, 1, 1), (0, 0, 0.5, 1)], id="seven")
    with pytest.raises(ValueError, match="phrase 2 of layout 'seven', 'a dog', is not in the prompt"
                       ".*missing='skip'"):  # fmt: skip
        words([layout])
    found = words([layout], "skip").tokens[0]
    assert found[0].any() and not found[1].any()
    # GLIGEN's style token has no area, and takes no part.
    style = Layout("a cat", ["in watercolor"], [(0, 1, 0, 1)])
    assert not words([style]).tokens.any()


def test_words_past_the_models_last_token_are_missing():
    length = TEXTS.config.max_length
    layout = Layout("x " * length + "cat", ["cat"], [(0, 0, 1, 1)])
    with pytest.raises(ValueError, match="within the tokens that the model reads"):
        words([layout])


def test_explicit_tokens_are_taken_as_they_are():
    layout = Layout("a cat", ["something"], [(0, 0, 1, 1)], tokens=[[2]])
    assert np.flatnonzero(words([layout]).tokens[0, 0]).tolist() == [2]
    with pytest.raises(ValueError, match="token 99 of box 1"):
        words([dataclasses.replace(layout, tokens=[[99]])])


def test_padding_that_is_no_word_does_not_count():
    """OpenCLIP pads with a token of its own; CLIP-L's maps were read with the end tokens."""
    config, layouts = TEXTS.config, [Layout("a cat"), Layout("")]
    assert words(layouts).end.tolist() == [config.max_length - 1] * 2
    padded = dataclasses.replace(config, pad_token_id=config.bos_token_id)
    tokens = len(TEXTS.tokenizer.encode("a cat", add_special_tokens=False).ids)
    found = words(layouts, texts=Texts(MODEL.tokenizer_json, padded))
    assert found.end.tolist() == [1 + tokens, 1]

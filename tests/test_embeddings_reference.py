"""Embeddings of textual inversion, added at conversion, give what diffusers' loader gives.

Token ids, hidden states and pooled outputs of transformers' text encoder with the embeddings that
diffusers added to it: `textual_inversion/expected.json` and `.npz`.
"""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from diffusers.loaders import TextualInversionLoaderMixin
from flax import nnx

from reground_jax.cli import main
from reground_jax.conditioning import Texts
from reground_jax.convert.conversion import convert, gather, with_clip_skip
from reground_jax.convert.embeddings import add_embeddings, read_embedding
from reground_jax.convert.export import export
from reground_jax.convert.gathered import Gathered
from reground_jax.convert.keys import leaves_of
from reground_jax.convert.sources import resolve
from reground_jax.convert.verification import TOLERANCE, verify
from reground_jax.devices import compiler_options
from reground_jax.model import leaf_shapes, network, read_description
from reground_jax.storage.checkpoint import unflatten
from tests.fixtures import fixtures
from tests.reference import relative_error

FOLDER = fixtures() / "textual_inversion"
CASES = json.loads((FOLDER / "expected.json").read_text("utf-8"))
FILES = [FOLDER / name for name, _ in CASES["files"]]
BASE = fixtures() / CASES["base"]


@functools.cache
def base() -> Gathered:
    return gather(resolve(BASE))


@functools.cache
def added() -> Gathered:
    return add_embeddings(base(), [read_embedding(path) for path in FILES])


def params(gathered: Gathered):
    """The text encoder's, as `convert` would write them."""
    shapes = leaf_shapes(gathered.config)
    own = {path: shape for path, shape in shapes.items() if path.startswith("text_encoder/")}
    leaves = leaves_of(own)
    named = gathered.tensors["text_encoder"]
    return unflatten(
        (leaf.path, leaf.build([named[name].read() for name in leaf.sources])) for leaf in leaves
    )["text_encoder"]


def encoded(gathered: Gathered, ids: np.ndarray):
    graph, _ = network(gathered.config, "text_encoder")

    def run(params, ids):
        return nnx.merge(graph, params)(ids)

    with jax.default_matmul_precision("highest"):
        program = jax.jit(run, compiler_options=compiler_options(jax.devices()[:1]))
        return program(jax.tree.map(jnp.asarray, params(gathered)), ids)


def texts(gathered: Gathered) -> Texts:
    return Texts(gathered.tokenizer.json, gathered.config.text_encoder.tokenizer)


def expected() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "expected.npz") as file:
        return dict(file)


def test_ids_and_outputs_equal_the_references():
    ids = texts(added()).ids(CASES["prompts"])
    np.testing.assert_array_equal(ids, expected()["ids"])
    ours = encoded(added(), ids)
    assert relative_error(np.asarray(ours.hidden), expected()["hidden"]) < 1e-5
    assert relative_error(np.asarray(ours.pooled), expected()["pooled"]) < 1e-5


def test_without_the_new_tokens_nothing_changes():
    prompts = ["a cat on the beach", "toys in the style of a turnery"]
    np.testing.assert_array_equal(texts(added()).ids(prompts), texts(base()).ids(prompts))


def test_several_vectors_are_one_word_of_the_prompt():
    """For attention guidance, all of them belong to the place of the token."""
    (token,) = [one for one in map(read_embedding, FILES) if len(one.vectors) == 3]
    encoding = texts(added()).tokenizer.encode(f"a {token.token} cat", add_special_tokens=False)
    end = 2 + len(token.token)
    inside = [start for start, stop in encoding.offsets if start < end and stop > 2]
    assert len(inside) == 3


def test_the_command_records_them_and_verifies(tmp_path, capsys):
    given = [part for path in FILES for part in ("--embedding", str(path))]
    assert main(["convert", str(BASE), str(tmp_path / "ours"), *given]) == 0
    records = read_description(tmp_path / "ours").info["embeddings"]
    assert [record["token"] for record in records] == [read_embedding(p).token for p in FILES]
    assert records[0].keys() == {"path", "token", "vectors", "sha256"}
    errors = verify(BASE, tmp_path / "ours", embeddings=FILES)
    assert errors["text_encoder"] < TOLERANCE / 10
    again = ["convert", str(tmp_path / "ours"), str(tmp_path / "more"), *given]
    assert main([*again, "--lora", str(fixtures() / "lora_kohya/kohya.safetensors")]) == 2
    assert "leave out --embedding" in capsys.readouterr().err


def test_they_go_back_to_diffusers(tmp_path):
    """Which writes all tokens of several vectors for the first, if that is in its case."""
    convert(BASE, tmp_path / "ours", embeddings=FILES)
    export(tmp_path / "ours", tmp_path / "back", "diffusers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "back" / "tokenizer")
    prompts = [prompt.lower() for prompt in CASES["prompts"]]
    written = TextualInversionLoaderMixin().maybe_convert_prompt(prompts, tokenizer)
    theirs = tokenizer(written, padding="max_length")
    np.testing.assert_array_equal(np.array(theirs.input_ids), texts(added()).ids(prompts))


# ---- bad files


def written(tmp_path, content, name="new.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def width() -> int:
    return base().config.text_encoder.network.width


BAD = {
    "for SDXL": (lambda: {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 48)}, "for SDXL"),
    "two tokens": (lambda: {"a": torch.ones(4), "b": torch.ones(4)}, "expected one array"),
    "no array": (lambda: {"<a>": 3}, "expected one array of vectors"),
    "nothing": (dict, "is no embedding: it holds a dict"),
    "a list": (lambda: [1, 2], "is no embedding: it holds a list"),
    "a number": (lambda: {"<a>": torch.ones(())}, r"vectors of shape \(\), expected \[n, E\]"),
    "three axes": (lambda: {"<a>": torch.ones(1, 2, 3)}, "expected"),
    "NaN": (lambda: {"<a>": torch.full((2, width()), float("nan"))}, "without NaN and infinity"),
    "no name": (lambda: {"": torch.ones(width())}, "its token is ''"),
    "a bad name": (lambda: {"a\nb": torch.ones(width())}, "printable"),
    "another base": (lambda: {"<a>": torch.ones(width() + 1)}, "is an embedding for another base"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence(tmp_path, case):
    content, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        add_embeddings(base(), [read_embedding(written(tmp_path, content()))])


def test_a_token_that_there_is_already_is_refused(tmp_path):
    one = read_embedding(written(tmp_path, {"<new>": torch.ones(width())}))
    again = read_embedding(written(tmp_path, {"<NEW>": torch.ones(width())}, "again.pt"))
    with pytest.raises(ValueError, match="already has the token '<new>'"):
        add_embeddings(base(), [one, again])


def test_a_file_that_does_not_exist_says_what_to_pass(tmp_path):
    with pytest.raises(ValueError, match="pass a file, or a Hub id"):
        read_embedding(tmp_path / "nothing.pt")


def test_a_folder_of_the_hubs_form_is_read(tmp_path):
    shutil.copy(FOLDER / "learned_embeds.safetensors", tmp_path)
    (tmp_path / "README.md").write_text("a style")
    found = read_embedding(tmp_path)
    assert found.token == next(iter(safetensors.torch.load_file(found.path)))


# ---- layers that prompts skip


def test_clip_skip_is_that_of_diffusers(tmp_path):
    """Prompts skip layers; phrases have the pooled output of all of them."""
    encoder = transformers.CLIPTextModel.from_pretrained(BASE / "text_encoder")
    ids = texts(base()).ids(["a cat on the beach", "a dog"])
    for skip in range(base().config.text_encoder.network.num_layers):
        ours = encoded(with_clip_skip(base(), skip), ids)
        with torch.no_grad():
            out = encoder(torch.from_numpy(ids).long(), output_hidden_states=True)
            norm = getattr(encoder, "text_model", encoder).final_layer_norm
            theirs = norm(out.hidden_states[-(skip + 1)])  # as in encode_prompt
        assert relative_error(np.asarray(ours.hidden), theirs.numpy()) < 1e-5
        assert relative_error(np.asarray(ours.pooled), out.pooler_output.numpy()) < 1e-5
    convert(BASE, tmp_path / "ours", clip_skip=1)
    assert read_description(tmp_path / "ours").config.text_encoder.network.clip_skip == 1
    assert verify(BASE, tmp_path / "ours")["text_encoder"] < TOLERANCE / 10


@pytest.mark.parametrize("skip", [-1, 99])
def test_a_wrong_clip_skip_is_refused(skip):
    with pytest.raises(ValueError, match=f"clip_skip is {skip}, but the text encoder has"):
        with_clip_skip(base(), skip)


def test_weights_of_words_are_named_in_one_warning():
    with pytest.warns(UserWarning, match=r"\(word:1\.2\) is read as text here") as caught:
        texts(base()).ids(["a (red:1.3) cat", "a [blue] (dog: 0.5)", "plain (text)"])
    assert len(caught) == 1

"""CLIP whole against transformers' CLIPModel, loaded by the real loader; and folders that fail."""

import dataclasses
import json
import warnings
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx
from tokenizers import Tokenizer
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from reground_jax.conditioning import padded
from reground_jax.convert.configs import clip_config
from reground_jax.convert.keys import KeyMismatch
from reground_jax.convert.rules import UnsupportedConfig
from reground_jax.convert.scoring import Clip, load_clip
from reground_jax.networks import clip_model
from tests.clip_models import CLIPS, clip, write_clip
from tests.reference import nhwc, relative_error

TOLERANCE = 1e-5  # of the largest value, in float32 on both sides
TEXTS = ["a cat", "two dogs, on grass!", "word " * 100, ""]


def network(loaded: Clip) -> clip_model.CLIPModel:
    return nnx.merge(loaded.network.graph, jax.tree.map(jnp.asarray, loaded.network.read()))


def inputs(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels, and ids that end at the end-of-text id, with other paddings after it."""
    random = torch.Generator().manual_seed(6)
    text, vision, _ = CLIPS[name]
    side, pad = vision["image_size"], text.get("pad_token_id", 999)
    ids = torch.randint(1, 990, (3, 77), generator=random)
    for row, length in enumerate((5, 76, 30)):
        ids[row, length:] = pad
        ids[row, length] = 999
    return torch.randn(3, 3, side, side, generator=random), ids


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("name", CLIPS)
def test_embeddings_and_logits_equal_transformers(name, activation, tmp_path):
    theirs = write_clip(tmp_path / "clip", name, activation=activation)
    pixels, ids = inputs(name)
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels)
        wrong = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[activation]
        other = clip(name, activation=wrong)(input_ids=ids, pixel_values=pixels)
    ours = network(load_clip(tmp_path / "clip"))
    images, tokens = jnp.asarray(nhwc(pixels)), jnp.asarray(ids.numpy())
    for found, outputs in (
        (ours.texts(tokens), "text_embeds"),
        (ours.images(images), "image_embeds"),
    ):
        assert relative_error(found, expected[outputs]) < TOLERANCE
        assert relative_error(found, other[outputs]) > 100 * TOLERANCE
    cosine = ours.similarity(images, tokens)
    right = (expected.text_embeds * expected.image_embeds).sum(-1)
    np.testing.assert_allclose(cosine, right, rtol=0, atol=TOLERANCE)
    logits = expected.logits_per_image.diagonal()
    np.testing.assert_allclose(ours.logit(cosine), logits, rtol=0, atol=1e-4)


def test_the_tokenizer_is_transformers(tmp_path):
    for name in CLIPS:
        write_clip(tmp_path / name, name)
        loaded = load_clip(tmp_path / name)
        theirs = CLIPTokenizer.from_pretrained(tmp_path / name)
        expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=77)["input_ids"]
        tokenizer = Tokenizer.from_str(loaded.tokenizer.json)
        found = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        assert [padded(ids, loaded.tokenizer.config) for ids in found] == expected


PUBLISHED = {  # width, layers and heads of text and vision, patch, projection; parameters
    "b32": ((512, 12, 8), (768, 12, 12), 32, 512, 151_277_313),
    "b16": ((512, 12, 8), (768, 12, 12), 16, 512, 149_620_737),
    "l14": ((768, 12, 12), (1024, 24, 16), 14, 768, 427_616_513),
    "h14": ((1024, 24, 16), (1280, 32, 16), 14, 1024, 986_109_441),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    text, vision, patch, projection, count = PUBLISHED[name]

    def part(sizes: tuple[int, int, int]) -> dict:
        width, layers, heads = sizes
        return dict(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=heads, projection_dim=projection,
        )  # fmt: skip

    theirs = CLIPConfig(
        text_config=part(text),
        vision_config=part(vision) | {"patch_size": patch},
        projection_dim=projection,
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in CLIPModel(theirs).parameters()) == count
    config = clip_config(json.loads(theirs.to_json_string(use_diff=False)))
    built = nnx.eval_shape(lambda: clip_model.CLIPModel(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(built))) == count


# ---- files


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A CLIP; no test changes it."""
    path = tmp_path_factory.mktemp("clips") / "clip"
    write_clip(path, "b32")
    return path


def copied(folder: Path, to: Path, *, config: dict | None = None, **tensors) -> Path:
    """A copy with other fields in its config, and other tensors; None takes one out."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    if config is not None:
        fields = json.loads((to / "config.json").read_text()) | config
        (to / "config.json").write_text(json.dumps(fields))
    if tensors:
        state = safetensors.torch.load_file(to / "model.safetensors") | tensors
        state = {name: tensor for name, tensor in state.items() if tensor is not None}
        safetensors.torch.save_file(state, to / "model.safetensors")
    return to


def test_a_pickle_with_positions_and_shards_give_the_same_network(folder, tmp_path):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    old = copied(folder, tmp_path / "old")
    (old / "model.safetensors").unlink()
    positions = {
        f"{part}_model.embeddings.position_ids": torch.arange(n)[None]
        for part, n in (("text", 77), ("vision", 17))
    }
    torch.save(state | positions, old / "pytorch_model.bin")
    shards = copied(folder, tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    clip("b32").save_pretrained(shards, max_shard_size="50KB")
    assert (shards / "model.safetensors.index.json").exists()
    first = load_clip(folder).network
    for path, count in ((old, 1), (shards, len(list(shards.glob("*-of-*"))))):
        other = load_clip(path).network
        assert sum("model" in name for name in other.files) == count
        jax.tree.map(np.testing.assert_array_equal, first.read(), other.read())


def test_files_that_are_no_full_clip_are_refused_in_one_sentence(folder, tmp_path):
    def refusal(name: str, **changes) -> str:
        with pytest.raises(ValueError) as caught:
            load_clip(copied(folder, tmp_path / name, **changes))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    text = tmp_path / "text"
    clip("b32").text_model.save_pretrained(text)
    fields = json.loads((folder / "config.json").read_text())["text_config"]
    (text / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="is clip_text_model, but images and texts are compared"):
        load_clip(text)
    for missing in ("text_projection.weight", "visual_projection.weight", "logit_scale"):
        found = refusal(missing, **{missing: None})
        assert f"model.safetensors has no {missing}, without which" in found
    found = refusal("activation", config={"text_config": {"hidden_act": "relu"}})
    assert "CLIP config, text_config: hidden_act is 'relu'" in found
    nan = torch.full((24,), float("nan"))
    found = refusal("nan", **{"text_model.final_layer_norm.bias": nan})
    assert "text_model.final_layer_norm.bias has NaN" in found
    with pytest.raises(ValueError, match="CLIP nowhere does not exist; pass a folder of"):
        load_clip("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no config\.json, so it is not a CLIP"):
        load_clip(tmp_path / "empty")


def test_tensors_that_do_not_fit_are_listed(folder, tmp_path):
    other = copied(
        folder, tmp_path / "x",
        **{
            "text_projection.weight": torch.zeros(20, 21), "extra.weight": torch.zeros(1),
            "text_model.final_layer_norm.bias": None,
        },
    )  # fmt: skip
    with pytest.raises(KeyMismatch) as caught:
        load_clip(other)
    for line in (
        "! clip: text_projection.weight has shape (20, 21), but the config requires (20, 24)",
        "+ clip: extra.weight matches no parameter",
        "- clip: text_model.final_layer_norm.bias is missing",
    ):
        assert line in str(caught.value)


def test_another_clips_tokenizer_is_refused(folder, tmp_path):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    for name, config, says in (
        ("end", {"eos_token_id": 900}, "ends texts at 999, but .* reads texts at 900"),
        ("size", {"vocab_size": 990, "eos_token_id": 2}, "has 1000 tokens .* has 990"),
    ):
        theirs = json.loads((folder / "config.json").read_text())["text_config"]
        other = copied(folder, tmp_path / name, config={"text_config": theirs | config})
        with pytest.raises(ValueError, match=says):
            load_clip(other)
    assert len(vocabulary) == 1000
    words = tmp_path / "words"
    words.mkdir()
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (words / file).write_bytes((folder / file).read_bytes())
        (tmp_path / "end" / file).unlink()
    (tmp_path / "end" / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert load_clip(tmp_path / "end", words).tokenizer == load_clip(folder).tokenizer
    assert load_clip(tmp_path / "end", otherwise=words).tokenizer == load_clip(folder).tokenizer
    assert "words" not in str(load_clip(folder, otherwise=tmp_path / "none").network.files)


def test_texts_are_no_longer_than_the_network_takes(folder, tmp_path):
    theirs = json.loads((folder / "config.json").read_text())["text_config"]
    state = safetensors.torch.load_file(folder / "model.safetensors")
    name = "text_model.embeddings.position_embedding.weight"
    short = copied(
        folder, tmp_path / "short",
        config={"text_config": theirs | {"max_position_embeddings": 16}},
        **{name: state[name][:16].clone()},
    )  # fmt: skip
    assert load_clip(short).tokenizer.config.max_length == 16


def test_a_hub_id_tells_its_commit(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--a--clip" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    copied(folder, snapshot)
    asked = []

    def download(repo_id, allow_patterns=None, **keywords):
        asked.append(sorted(allow_patterns))
        return str(snapshot)

    names = sorted(file.name for file in folder.iterdir())
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *a, **k: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load_clip("a/clip")
    assert loaded.network.revision == "0123abcd"
    assert loaded.network.files == load_clip(folder).network.files
    assert asked[0] == ["config.json", "model.safetensors"] and "vocab.json" in asked[1]


# ---- configs of old files

GENERIC = {  # what transformers 4.16 wrote for either part of openai/clip-vit-base-patch32
    "_name_or_path": "", "add_cross_attention": False, "architectures": None,
    "attention_dropout": 0.0, "bad_words_ids": None, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0,
    "do_sample": False, "dropout": 0.0, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "hidden_act": "quick_gelu", "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_factor": 1.0, "initializer_range": 0.02, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "layer_norm_eps": 1e-05,
    "length_penalty": 1.0, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "prefix": None, "problem_type": None,
    "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
    "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None,
    "task_specific_params": None, "temperature": 1.0, "tie_encoder_decoder": False,
    "tie_word_embeddings": True, "tokenizer_class": None, "top_k": 50, "top_p": 1.0,
    "torch_dtype": None, "torchscript": False, "transformers_version": "4.16.0.dev0",
    "use_bfloat16": False, "projection_dim": 512, "num_hidden_layers": 12,
}  # fmt: skip


def test_the_config_of_openais_base_model_is_read_without_a_warning():
    old = {
        "_name_or_path": "openai/clip-vit-base-patch32", "architectures": ["CLIPModel"],
        "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "clip",
        "projection_dim": 512, "transformers_version": None, "text_config_dict": None,
        "vision_config_dict": None,
        "text_config": GENERIC | {
            "model_type": "clip_text_model", "bos_token_id": 0, "eos_token_id": 2,
            "pad_token_id": 1, "hidden_size": 512, "intermediate_size": 2048,
            "max_position_embeddings": 77, "num_attention_heads": 8, "vocab_size": 49408,
        },
        "vision_config": GENERIC | {
            "model_type": "clip_vision_model", "bos_token_id": None, "eos_token_id": None,
            "pad_token_id": None, "hidden_size": 768, "image_size": 224, "patch_size": 32,
            "intermediate_size": 3072, "num_attention_heads": 12,
        },
    }  # fmt: skip
    default = clip_config({"model_type": "clip"})
    text = dataclasses.replace(default.text, eos_token_id=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clip_config(old) == dataclasses.replace(default, text=text)


def test_the_two_forms_of_a_part_in_old_files_must_agree():
    old = {  # as that of openai/clip-vit-large-patch14
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": dict(
            hidden_size=768, intermediate_size=3072, num_attention_heads=12, eos_token_id=2
        ),
        "text_config_dict": dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
    }
    found = clip_config(old)
    assert (found.text.width, found.text.eos_token_id) == (768, 49407)
    assert found.vision.projection_width == 768
    assert clip_config(old | {"text_config_dict": None}).text.eos_token_id is None
    with pytest.raises(UnsupportedConfig, match="text_config and text_config_dict contradict"):
        clip_config(old | {"text_config_dict": {}})
    with pytest.raises(UnsupportedConfig, match="text_config_dict is 5, expected a JSON object"):
        clip_config(old | {"text_config_dict": 5})

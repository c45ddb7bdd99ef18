"""A model's tokenizer as the files that transformers reads, for `export`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, processors

from reground_jax.basics.atomic import write_json, write_text
from reground_jax.model import Model

WORD_END = "</w>"


def write_tokenizer(folder: Path, model: Model) -> str:
    """Writes a folder for `from_pretrained`, and returns the class that reads it.

    CLIPTokenizer for CLIP's vocabulary and rules, whatever tokens were added; for any other, such
    as that of the built-in models, PreTrainedTokenizerFast.
    """
    content = json.loads(model.tokenizer_json)
    tokens = model.config.text_encoder.tokenizer
    names = {number: name for name, number in content["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in content.get("added_tokens", ())}
    special = {
        "bos_token": names[tokens.bos_token_id],
        "eos_token": names[tokens.eos_token_id],
        "pad_token": names[tokens.pad_token_id],
        "unk_token": content["model"].get("unk_token") or names[tokens.eos_token_id],
    }
    kind = "CLIPTokenizer" if _is_clips(content) else "PreTrainedTokenizerFast"
    settings = special | {"model_max_length": tokens.max_length, "tokenizer_class": kind}
    write_json(folder / "special_tokens_map.json", special, indent=2)
    if kind != "CLIPTokenizer":
        begin, end = (
            (names[number], number) for number in (tokens.bos_token_id, tokens.eos_token_id)
        )
        write_text(folder / "tokenizer.json", _whole(model.tokenizer_json, begin, end))
        write_json(folder / "tokenizer_config.json", settings, indent=2)
        return kind
    vocabulary = content["model"]["vocab"]
    write_json(folder / "vocab.json", vocabulary)
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    added = {name: n for n, name in names.items() if name not in vocabulary}
    for name in [name for name in added if name.endswith("_0") and f"{name[:-1]}1" in added]:
        # The first of a token's several vectors has the token's own name there.
        added[name.removesuffix("_0")] = added.pop(name)
    if added:
        write_json(folder / "added_tokens.json", added, indent=2)
    write_json(folder / "tokenizer_config.json", settings, indent=2)
    return kind


def with_last_end(model: Model) -> Model:
    """The same model; if texts end with token 2, that token changes places with the last one.

    transformers takes an eos_token_id of 2 for the largest id of a text, which is another token.
    """
    text = model.config.text_encoder
    if text.network.eos_token_id != 2:
        return model
    last = text.network.vocab_size - 1
    places = {2: last, last: 2}
    content = json.loads(model.tokenizer_json)
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {name: places.get(n, n) for name, n in vocabulary.items()}
    for token in content.get("added_tokens", ()):
        token["id"] = places.get(token["id"], token["id"])
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    moved = {name: getattr(text.tokenizer, name) for name in ids}
    moved = {name: places.get(number, number) for name, number in moved.items()}
    encoder = dataclasses.replace(
        text,
        network=dataclasses.replace(text.network, eos_token_id=last),
        tokenizer=dataclasses.replace(text.tokenizer, **moved),
    )
    rows = np.array(model.params["text_encoder"]["token_embedding"]["embedding"])
    rows[[2, last]] = rows[[last, 2]]
    params = model.params["text_encoder"] | {"token_embedding": {"embedding": rows}}
    return dataclasses.replace(
        model,
        config=dataclasses.replace(model.config, text_encoders=(encoder,)),
        params=model.params | {"text_encoder": params},
        tokenizer_json=json.dumps(content),
    )


def _is_clips(content: dict[str, Any]) -> bool:
    """Byte pairs whose words end as CLIP's."""
    model = content["model"]
    return model.get("type") == "BPE" and model.get("end_of_word_suffix") == WORD_END


def _whole(text: str, begin: tuple[str, int], end: tuple[str, int]) -> str:
    """A tokenizer.json that begins and ends texts by itself, as ours is not asked to."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A {end[0]}", special_tokens=[begin, end]
    )
    return tokenizer.to_str()

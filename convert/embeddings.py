"""Textual inversion: a new token for each file, of one vector or several, in the text encoder.

A token of n vectors stands for n tokens, TOKEN_0 ... TOKEN_(n-1), which the tokenizer writes for it
before it splits a text. (The first cannot be TOKEN itself, which would be written out again.)
Tokens are found in any case, as whole words. Source: diffusers' `loaders/textual_inversion.py`,
which differs in two ways: it only replaces names as they are written, and inside of other words,
too.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, normalizers

from reground_jax.basics.wording import shown

from .forms import form_of, sha256_of
from .gathered import Gathered
from .passing import is_finite
from .pickles import load_torch
from .sources import open_tensors, resolve_embedding
from .stored import StoredArray

LONGEST_TOKEN, MOST_VECTORS = 100, 1024
TOKENS = "embeddings.token_embedding.weight"
XL = ("clip_l", "clip_g")  # vectors for each of SDXL's two text encoders


@dataclass(frozen=True)
class Embedding:
    """One file of textual inversion."""

    path: Path
    token: str
    vectors: np.ndarray  # [n, E]

    def record(self) -> dict[str, Any]:
        """What `info` says of it."""
        return {
            "path": str(self.path), "token": self.token, "vectors": len(self.vectors),
            "sha256": sha256_of(self.path),
        }  # fmt: skip


def read_embedding(source: str | Path) -> Embedding:
    """Reads a file in diffusers' or the WebUI's form, as safetensors or pickle.

    The token is the name that the file gives it, or else the file's own name. Raises ValueError for
    anything else.
    """
    path = resolve_embedding(source)
    torch = form_of(path) == "torch"
    content: Any = load_torch(path) if torch else open_tensors(path).stored_arrays()
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} is no embedding: it holds a {type(content).__name__}")
    if isinstance(content.get("string_to_param"), dict):  # the WebUI's
        vectors, name = list(content["string_to_param"].values()), content.get("name")
    elif any(name in content for name in XL):
        raise ValueError(f"{path} is an embedding for SDXL ({', '.join(XL)}), which is unsupported")
    elif "emb_params" in content:
        vectors, name = [content["emb_params"]], None
    else:
        vectors, name = list(content.values()), next(iter(content))
    if len(vectors) != 1 or not isinstance(vectors[0], StoredArray):
        raise ValueError(
            f"{path} is no embedding: expected one array of vectors, found {shown(list(content))}"
        )
    token = _token(path, path.stem if name is None else name)
    return Embedding(path, token, _vectors(path, vectors[0]))


def _token(path: Path, name: Any) -> str:
    text = name.strip() if isinstance(name, str) else ""
    if not text or len(text) > LONGEST_TOKEN or not text.isprintable():
        raise ValueError(
            f"{path}: its token is {shown(name)}, but it must be a printable text of at most "
            f"{LONGEST_TOKEN} characters"
        )
    return text


def _vectors(path: Path, stored: StoredArray) -> np.ndarray:
    if len(stored.shape) not in (1, 2) or not 0 < stored.size <= MOST_VECTORS * 2**16:
        raise ValueError(f"{path}: vectors of shape {stored.shape}, expected [n, E] or [E]")
    vectors = stored.read().reshape(-1, stored.shape[-1])
    if len(vectors) > MOST_VECTORS or not is_finite(vectors):
        raise ValueError(
            f"{path}: {len(vectors)} vectors, expected at most {MOST_VECTORS} without NaN and "
            "infinity: the file is damaged"
        )
    return vectors


def add_embeddings(gathered: Gathered, embeddings: Sequence[Embedding]) -> Gathered:
    """The same model with a token for each embedding, after all that it has.

    Raises ValueError for vectors of another width, and for a token that there is already.
    """
    if not embeddings:
        return gathered
    text, tokenizer = gathered.config.text_encoder, gathered.tokenizer
    first, width = text.network.vocab_size, text.network.width
    for embedding in embeddings:
        if (found := embedding.vectors.shape[1]) != width:
            raise ValueError(
                f"{embedding.path} is an embedding for another base: its vectors have width "
                f"{found}, but the text encoder's have {width}"
            )
    if tokenizer.size != first:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} tokens, but the text encoder has {first} rows: "
            "embeddings can only be added if they agree"
        )
    built = Tokenizer.from_str(tokenizer.json)
    for embedding in embeddings:
        _add_token(built, embedding)
    located = gathered.tensors["text_encoder"][TOKENS]
    located = dataclasses.replace(located, rows=tuple(one.vectors for one in embeddings))
    named = gathered.tensors["text_encoder"] | {TOKENS: located}
    size = first + sum(len(one.vectors) for one in embeddings)
    # The largest id, at which some configs have the pooled output, would be a new token's.
    network = dataclasses.replace(
        text.network, vocab_size=size, eos_token_id=text.tokenizer.eos_token_id
    )
    encoders = (dataclasses.replace(text, network=network),)
    return dataclasses.replace(
        gathered,
        config=dataclasses.replace(gathered.config, text_encoders=encoders),
        tensors=gathered.tensors | {"text_encoder": named},
        tokenizer=tokenizer._replace(json=built.to_str(), size=size),
    )


def _add_token(tokenizer: Tokenizer, embedding: Embedding) -> None:
    """Adds its tokens at the end of the vocabulary, and writes all of them for the first."""
    lower = tokenizer.normalizer.normalize_str(embedding.token)
    count = len(embedding.vectors)
    names = [f"{lower}_{n}" for n in range(count)] if count > 1 else [lower]
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if taken := [name for name in (lower, *names) if name in vocabulary]:
        raise ValueError(
            f"{embedding.path}: the tokenizer already has the token {taken[0]!r}: rename the file, "
            "or the token in it"
        )
    if count > 1:
        whole = Regex(rf"(?<!\w){re.escape(lower)}(?!\w)")
        tokenizer.normalizer = normalizers.Sequence(
            [tokenizer.normalizer, normalizers.Replace(whole, " ".join(names))]
        )
    tokenizer.add_tokens([AddedToken(name, single_word=True, normalized=True) for name in names])

"""Reads a tokenizer folder's settings: special tokens, added tokens, maximum length.

The files are read as transformers 5 reads them for CLIPTokenizer. `added_tokens_decoder` in
tokenizer_config.json, if present, replaces the two files of older versions, special_tokens_map.json
and added_tokens.json. Other fields have no effect (do_lower_case: a CLIP tokenizer always
lowercases) or are refused (NEUTRAL).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from .rules import MAX_LENGTHS, check_neutral, read_json, refused

MAX_LENGTH = 77
UNSET_LENGTH = 10**6  # transformers writes 1e30 for "not set"
SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
# In the order in which transformers assigns ids to those that the vocabulary lacks.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
NEUTRAL = {
    "padding_side": ("right",),
    "truncation_side": ("right",),
    "split_special_tokens": (False,),
}
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")


class TokenizerSettings(NamedTuple):
    special: dict[str, str]  # tokens by role, as in SPECIAL
    added: dict[str, AddedToken]  # by content, in the order in which they get ids
    ids: dict[str, int]  # the ids that the files state
    max_length: int


def default_settings() -> TokenizerSettings:
    """The settings of a vocabulary that comes without other files."""
    return TokenizerSettings(dict(SPECIAL), {}, {}, MAX_LENGTH)


def read_settings(folder: Path, *, ready: bool) -> TokenizerSettings:
    """The settings in a folder. ready: it has a tokenizer.json, which says how to split texts.

    Raises ValueError that names the file and the field.
    """
    where = folder / "tokenizer_config.json"
    config = read_json(where) if where.is_file() else {}
    check_neutral(str(where), config, NEUTRAL)
    kind = config.get("tokenizer_class")
    if not ready and kind not in (None, *CLASSES):
        raise refused(str(where), "tokenizer_class", kind, " or ".join(CLASSES))
    fields = dict(config)
    special_map = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and special_map.is_file():
        fields |= {k: v for k, v in read_json(special_map).items() if v is not None}
    special = {r: _text(where, r, fields[r]) for r in NAMED if fields.get(r) is not None}
    if "added_tokens_decoder" in config:
        listed = list(_decoder(where, config["added_tokens_decoder"]))
    else:
        # transformers 5 treats tokens under the older name in special_tokens_map.json as ordinary.
        kept = _extras(where, {EXTRA[0]: config.get(EXTRA[0]), EXTRA[1]: fields.get(EXTRA[1])})
        listed = list(_added_file(folder / "added_tokens.json", {*special.values(), *kept}))
    added = {token.content: token for _, token in sorted(listed, key=lambda entry: entry[0])}
    for content in (*special.values(), *_specific(config), *_extras(where, fields)):
        added.setdefault(content, AddedToken(content, special=True, normalized=False))
    return TokenizerSettings(
        special=SPECIAL | {role: text for role, text in special.items() if role in SPECIAL},
        added=added,
        ids={token.content: number for number, token in listed},
        max_length=_length(where, fields),
    )


def _decoder(where: Path, entries: Any) -> Iterator[tuple[int, AddedToken]]:
    """`added_tokens_decoder`: tokens by id, which is a string."""
    rule = "an object that maps ids to tokens with content and flags"
    if not isinstance(entries, Mapping):
        raise refused(str(where), "added_tokens_decoder", entries, rule)
    for number, token in entries.items():
        fine = number.isascii() and number.isdigit() and len(number) < 10
        if not (fine and isinstance(token, Mapping)):
            raise refused(str(where), f"added_tokens_decoder[{number[:20]}]", token, rule)
        flags = {name: token[name] for name in FLAGS if name in token}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise refused(str(where), f"added_tokens_decoder[{number}]", token, rule)
        yield int(number), AddedToken(_text(where, "added_tokens_decoder", token), **flags)


def _added_file(path: Path, special: set[str]) -> Iterator[tuple[int, AddedToken]]:
    """added_tokens.json: ids by token. Only special tokens keep their case."""
    for content, number in (read_json(path) if path.is_file() else {}).items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 10**9:
            raise refused(str(path), content[:40], number, "the id of an added token")
        is_special = content in special
        yield number, AddedToken(content, special=is_special, normalized=not is_special)


def _specific(config: Mapping[str, Any]) -> list[str]:
    """Special tokens with model-specific roles, such as image_token."""
    return [
        value
        for name, value in config.items()
        if name.endswith("_token") and name not in NAMED and isinstance(value, str)
    ]


def _extras(where: Path, fields: Mapping[str, Any]) -> list[str]:
    """Special tokens without a role, given as a list or as an object that names them."""
    found = []
    for name in EXTRA:
        value = fields.get(name)
        if value is not None and not isinstance(value, list | Mapping):
            raise refused(str(where), name, value, "a list of tokens")
        tokens = value.values() if isinstance(value, Mapping) else value or []
        found += [_text(where, name, token) for token in tokens]
    return found


def _text(where: Path, name: str, token: Any) -> str:
    """The text of a special token, which is a string or an object with content and flags."""
    content = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(content, str) or not content:
        raise refused(str(where), name, token, "a string, or an object whose content is a string")
    return content


def _length(where: Path, fields: Mapping[str, Any]) -> int:
    length = fields.get("model_max_length")
    if length is None or (isinstance(length, int | float) and length >= UNSET_LENGTH):
        return MAX_LENGTH
    if not (isinstance(length, int) and MAX_LENGTHS.accepts(length)):
        raise refused(str(where), "model_max_length", length, MAX_LENGTHS.text)
    return length

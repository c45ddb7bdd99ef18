"""CLIP's tokenizer as a `tokenizer.json`, from any of the files that define it.

Lowercase byte-level BPE whose word-final tokens end in `</w>`; a text becomes
`<|startoftext|> ... <|endoftext|>`. Rules and special tokens are as in transformers' CLIPTokenizer
(the fast one: whitespace runs become one space, no HTML unescaping). The JSON does not truncate or
pad to `max_length`; the caller does, as `TokenizerConfig` says.
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from reground_jax.basics.wording import shown
from reground_jax.config import TokenizerConfig

from .rules import parse_file, read_json, whole
from .tokenizer_settings import TokenizerSettings, default_settings, read_settings

NUM_MERGES = 49152 - 256 - 2  # of the merges file's 262,144, CLIP uses the first 48,894
IDS = whole(0, 2**20)
MAX_MERGES_BYTES = 2**26  # OpenAI's file has 3.2 MB
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class BuiltTokenizer(NamedTuple):
    json: str  # the content of a tokenizer.json, for `tokenizers.Tokenizer.from_str`
    config: TokenizerConfig
    size: int  # the largest id plus one


def build_tokenizer(source: str | Path, pad_token: str | None = None) -> BuiltTokenizer:
    """The tokenizer in a folder or a merges file.

    A folder has `tokenizer.json`, or `vocab.json` and `merges.txt`, and may have
    `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`; if it contains a
    `tokenizer` folder, that one is used. A merges file (`bpe_simple_vocab_16e6.txt.gz`, as in
    OpenAI's CLIP and in the open_clip_torch wheel) implies the vocabulary.

    `pad_token` overrides the files; the default is end-of-text, as in SD1.x (SD2.x pads with "!").
    Raises ValueError for missing or damaged files.
    """
    source = Path(source)
    if source.is_file():
        settings = default_settings()
        tokenizer = _from_merges_file(source, settings.special)
    else:
        folder = source / "tokenizer" if (source / "tokenizer").is_dir() else source
        ready = (folder / "tokenizer.json").is_file()
        settings = read_settings(folder, ready=ready)
        tokenizer = _from_json(folder) if ready else _from_folder(folder, settings.special)
    if pad_token is not None:
        settings.special["pad_token"] = pad_token
    return _finish(tokenizer, settings, source)


def _from_json(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    content = json.dumps(parse_file(path))  # the library rejects a byte order mark
    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{path} is not a tokenizer ({_first_line(error)}); download it again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _from_folder(folder: Path, special: dict[str, str]) -> Tokenizer:
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        raise ValueError(
            f"{folder} has no tokenizer: looked for tokenizer.json, or vocab.json and merges.txt; "
            "pass another folder, a Hub id (openai/clip-vit-large-patch14), or the merges file "
            "bpe_simple_vocab_16e6.txt.gz"
        )
    return _assemble(_read_vocabulary(vocab), _read_merges(merges), special, folder)


def _read_vocabulary(path: Path) -> dict[str, int]:
    ids = read_json(path)
    for token, number in ids.items():
        if not IDS.accepts(number):
            raise ValueError(
                f"{path}: the token {token[:40]!r} has the id {shown(number)}, expected {IDS.text}"
            )
    return ids


def _from_merges_file(path: Path, special: dict[str, str]) -> Tokenizer:
    """The vocabulary in CLIP's order: 256 bytes, the same with `</w>`, one token per merge."""
    merges = _read_merges(path)
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges)]
    tokens += [special["bos_token"], special["eos_token"]]
    return _assemble({token: n for n, token in enumerate(tokens)}, merges, special, path)


def _byte_symbols() -> list[str]:
    """A visible character for each byte, in vocabulary order.

    Printable bytes stand for themselves and come first; the others are mapped to 256 and up.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    return [chr(code) for code in (*printable, *range(256, 512 - len(printable)))]


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = (gzip.GzipFile(fileobj=file) if packed else file).read(MAX_MERGES_BYTES + 1)
        if len(content) > MAX_MERGES_BYTES:
            raise ValueError(f"it holds more than {MAX_MERGES_BYTES // 2**20} MiB")
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(
            f"{path} is not a merges file ({error}); copy or download it again"
        ) from error
    lines = text.split("\n")
    if "#version" in lines[0]:
        lines = lines[1:]
    pairs = [tuple(line.split()) for line in lines[:NUM_MERGES] if line.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path} is not a merges file: each line should be two tokens")
    return [(left, right) for left, right in pairs]


def _assemble(
    vocab: dict[str, int], merges: list[tuple[str, str]], special: dict[str, str], source: Path
) -> Tokenizer:
    try:
        model = models.BPE(
            vocab,
            merges,
            unk_token=special["unk_token"],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{source}: vocabulary and merges do not match ({_first_line(error)})"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _finish(tokenizer: Tokenizer, settings: TokenizerSettings, source: Path) -> BuiltTokenizer:
    """Adds what every form needs, and removes truncation and padding that a file may specify."""
    special = settings.special
    _add_tokens(tokenizer, settings, source)
    ids = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        number = tokenizer.token_to_id(special[name])
        if number is None:
            raise ValueError(f"{source}: the vocabulary has no {name} {special[name]!r}")
        ids[name] = number
    # A pad token is special in prompts, too: SD2's "!" becomes id 0, not the word "!</w>".
    known = _added(tokenizer)
    tokenizer.add_special_tokens(
        [
            AddedToken(special[name], special=True, normalized=False)
            for name in ids
            if special[name] not in known
        ]
    )
    bos, eos = special["bos_token"], special["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        special_tokens=[(bos, ids["bos_token"]), (eos, ids["eos_token"])],
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = TokenizerConfig(
        max_length=settings.max_length,
        bos_token_id=ids["bos_token"],
        eos_token_id=ids["eos_token"],
        pad_token_id=ids["pad_token"],
    )
    ids_of = tokenizer.get_vocab(with_added_tokens=True)
    if len(set(ids_of.values())) != len(ids_of):
        raise ValueError(f"{source}: two tokens of the vocabulary share an id; download it again")
    return BuiltTokenizer(tokenizer.to_str(), config, 1 + max(ids_of.values()))


def _added(tokenizer: Tokenizer) -> set[str]:
    return {token.content for token in tokenizer.get_added_tokens_decoder().values()}


def _add_tokens(tokenizer: Tokenizer, settings: TokenizerSettings, source: Path) -> None:
    """Adds the tokens that the files list. Raises ValueError if one would get a different id."""
    known = _added(tokenizer) - settings.ids.keys()
    tokenizer.add_tokens([t for content, t in settings.added.items() if content not in known])
    for content, number in settings.ids.items():
        found = tokenizer.token_to_id(content)
        if found != number:
            raise ValueError(
                f"{source}: the added token {content[:40]!r} should have the id {number}, but the "
                f"vocabulary and earlier added tokens give it {found}: a file is missing or from "
                "another model; copy or download the whole folder again"
            )

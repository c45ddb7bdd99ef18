"""The emoji world's tokenizer: one token per word, as the `tokenizer.json` that Texts reads."""

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from reground_jax.config import TokenizerConfig
from reground_jax.emoji.captions import vocabulary
from reground_jax.emoji.world import WorldConfig

UNKNOWN, BEGIN, END = "<unk>", "<bos>", "<eos>"
MAX_LENGTH = 48


def emoji_tokenizer(config: WorldConfig) -> tuple[str, TokenizerConfig]:
    """The text of this world's tokenizer.json, and its config. END is also the padding token.

    The tokenizer lowercases and splits at whitespace and punctuation. Ids: 0 unknown word, 1 begin,
    2 end, then the words of `vocabulary`. `vocabulary_size` gives the number of ids.
    """
    words = vocabulary(config.categories, config.tints)
    ids = {word: i for i, word in enumerate((UNKNOWN, BEGIN, END, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    # Hyphens and underscores in stray category names ("fire-hydrant") separate words.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex("[-_]+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    length = TokenizerConfig(
        max_length=MAX_LENGTH, bos_token_id=ids[BEGIN], eos_token_id=ids[END], pad_token_id=ids[END]
    )
    return tokenizer.to_str(), length


def vocabulary_size(tokenizer_json: str) -> int:
    """The number of ids in a tokenizer.json: rows of the text encoder's embedding."""
    return Tokenizer.from_str(tokenizer_json).get_vocab_size()

"""A checkpoint on its way to a model: what `conversion` gathers from files and completes."""

from dataclasses import dataclass

from reground_jax.config import ModelConfig

from .sources import Tensors
from .tokenizers import BuiltTokenizer


@dataclass(frozen=True)
class Gathered:
    config: ModelConfig
    tensors: Tensors
    tokenizer: BuiltTokenizer
    foreign: tuple[str, ...] = ()  # ignored arrays that belong to no network

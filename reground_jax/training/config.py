"""The JSON file of a stage: where examples come from, the model's shape, the loss, the recipe.

    {"source": {"kind": "emoji", ...}, "model": {"vae": {...}, ...}, "loss": {...}, "recipe": {...}}

Every part but "source" and "recipe" may be absent. `configs/` holds the files that made the
shipped model.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reground_jax.config import from_json
from reground_jax.emoji.artwork import load_artwork
from reground_jax.emoji.tokenizer import emoji_tokenizer
from reground_jax.emoji.world import LARGE, World, WorldConfig
from reground_jax.readers import Rejected
from reground_jax.readers.annotated import Annotated
from reground_jax.readers.coco import read_coco
from reground_jax.readers.jsonl import read_jsonl
from reground_jax.training.data import Files, Source
from reground_jax.training.trainer import Recipe


@dataclass(frozen=True)
class StageConfig:
    """One stage as its JSON file says it; relative paths in it are relative to that file."""

    source: dict[str, Any]
    recipe: Recipe
    model: dict[str, dict[str, Any]] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    wiring: str = "sequential"  # of the grounding stage
    fuser_start: str = "gates"  # what is zero of new fusers: GLIGEN's "gates", or their "outputs"
    dtype: str = "float32"  # of the arithmetic; master weights are always float32
    save_dtype: str = "bfloat16"  # of the finished model
    cache_examples: int = 0  # latents kept, from which then all epochs are made; 0 keeps none
    num_samples: int = 12  # pictures in a sample grid
    folder: Path = Path()

    def __post_init__(self) -> None:
        if self.fuser_start not in ("gates", "outputs"):
            raise ValueError(f"fuser_start is {self.fuser_start!r}: it is 'gates' or 'outputs'")

    @classmethod
    def load(cls, path: str | Path) -> "StageConfig":
        """Raises ValueError that names the file and what is wrong in it."""
        path = Path(path)
        try:
            value = json.loads(path.read_text("utf-8"))
            recipe = from_json(Recipe, value.pop("recipe", {}))
            return cls(recipe=recipe, folder=path.parent, **value)
        except OSError as error:
            raise ValueError(f"cannot read config {path}: {error.strerror}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"config {path}: {error}") from error


@dataclass(frozen=True)
class Data:
    """A source, some examples that it never gives, and its own tokenizer if it has one."""

    source: Source
    heldout: Callable[[int], Any]  # n -> the first n held-out examples
    tokenizer: tuple[str, Any] | None  # (tokenizer.json, TokenizerConfig)


@dataclass(frozen=True)
class Stream:
    """One numbered stream of a world's examples, as a Source."""

    world: World
    seed: int

    def batch(self, index: int, batch_size: int) -> Any:
        return self.world.batch(index, batch_size, self.seed)


def open_data(config: StageConfig) -> Data:
    """The data that `config.source` describes. Raises ValueError for what it cannot be."""
    options = dict(config.source)
    kind = options.pop("kind", None)
    makers = {"emoji": _emoji, "coco": _coco, "jsonl": _jsonl}
    if kind not in makers:
        raise ValueError(f"source kind is {kind!r}: it must be one of {', '.join(makers)}")
    try:
        return makers[kind](config.folder, **options)
    except TypeError as error:
        raise ValueError(f"source {kind!r}: {error}; correct the config") from error


def _emoji(
    folder: Path,
    *,
    artwork: str | None = None,
    world: dict[str, Any] | str = "small",
    seed: int = 0,
) -> Data:
    if artwork is None:
        raise ValueError(
            "the emoji world needs its artwork: give --artwork DIR/artwork.npz, which "
            "`python -m reground_jax.emoji.artwork --out DIR` makes"
        )
    named = {"small": WorldConfig(), "large": LARGE}
    settings = named[world] if isinstance(world, str) else from_json(WorldConfig, world)
    made = World(settings, load_artwork(folder / artwork))
    return Data(Stream(made, seed), made.heldout, emoji_tokenizer(settings))


def _coco(
    folder: Path,
    *,
    instances: str,
    images: str,
    image_size: int,
    captions: str | None = None,
    **options: Any,
) -> Data:
    texts = None if captions is None else folder / captions
    entries = read_coco(folder / instances, texts, folder / images)
    return _files(list(entries), image_size, **options)


def _jsonl(folder: Path, *, path: str, image_size: int, **options: Any) -> Data:
    return _files(list(read_jsonl(folder / path)), image_size, **options)


def _files(
    entries: list[Annotated | Rejected], image_size: int, *, heldout: int = 0, seed: int = 0
) -> Data:
    """The last `heldout` entries are never trained on; without any, samples show training data."""
    rejected = [entry for entry in entries if isinstance(entry, Rejected)]
    for entry in rejected[:5]:
        print(f"left out: {entry.source}: {entry.reason}")
    if rejected:
        print(f"{len(rejected)} of {len(entries)} entries are left out")
    good = [entry for entry in entries if isinstance(entry, Annotated)]
    train = good[: len(good) - heldout]
    source = Files(train, image_size=image_size, seed=seed)
    shown = Files(good[len(good) - heldout :] if heldout else train, image_size=image_size)
    return Data(source, lambda count: shown.batch(0, count), None)

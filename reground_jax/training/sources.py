"""Opens the "source" of a config file: the emoji world, COCO, or JSONL with images."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, no_type_check

from reground_jax.basics.fields import at_least, between, check_name, check_number, parse
from reground_jax.emoji.artwork import Artwork, load_artwork
from reground_jax.emoji.tokenizer import emoji_tokenizer
from reground_jax.emoji.world import LARGE, World, WorldConfig
from reground_jax.readers import Rejected
from reground_jax.readers.annotated import Annotated
from reground_jax.readers.coco import read_coco
from reground_jax.readers.jsonl import read_jsonl
from reground_jax.settings import MAX_SIDE
from reground_jax.training.data import NAMED, Files, Source

WORLDS = {"small": WorldConfig(), "large": LARGE}
PLACES = {"artwork", "instances", "images", "captions", "path"}


@dataclass(frozen=True)
class Data:
    """A source, held-out examples that it never yields, and its own tokenizer if it has one."""

    source: Source
    heldout: Callable[[int], Any]  # n -> the first n held-out examples
    tokenizer: tuple[str, Any] | None  # (tokenizer.json, TokenizerConfig)
    identity: Mapping[str, Any] = field(default_factory=dict)  # distinguishes it from other data
    classes: int | None = None  # of the examples' labels, with the background; None: no labels


@dataclass(frozen=True)
class Stream:
    """A Source: one numbered stream of a world's examples."""

    world: World
    seed: int

    def batch(self, index: int, batch_size: int) -> Any:
        return self.world.batch(index, batch_size, self.seed)


def open_data(source: Mapping[str, Any], folder: Path) -> Data:
    """The data that a config in `folder` describes. Raises ValueError if it cannot be used."""
    options = dict(source)
    kind = options.pop("kind", None)
    check_name("source kind", kind, SOURCES)
    for name in PLACES & options.keys():
        if not isinstance(options[name], str | None):
            raise ValueError(f"source field {name!r} is {options[name]!r}: it must be a path")
    return parse(SOURCES[kind], options, f"source {kind!r}").open(folder)


@no_type_check  # so that the tests' type checker does not preempt the errors below
@dataclass(frozen=True)
class EmojiSource:
    """Scenes of pictograms. world: "small", "large", or fields of `WorldConfig`."""

    artwork: str | None = None
    world: str | dict[str, Any] = "small"
    seed: int = 0

    def open(self, folder: Path) -> Data:
        if self.artwork is None:
            raise ValueError(
                "the emoji world needs its artwork: run `python -m reground_jax.emoji.artwork "
                "--out DIR`, then give --artwork DIR/artwork.npz"
            )
        check_number("seed", self.seed, *at_least(0), whole=True)
        if isinstance(self.world, dict):
            settings = parse(WorldConfig, self.world, "world")
        else:
            check_name("world", self.world, WORLDS)
            settings = WORLDS[self.world]
        artwork = load_artwork(folder / self.artwork)
        world = World(settings, artwork)
        identity = {
            "kind": "emoji", "seed": self.seed, "world": vars(settings),
            "artwork": _artwork_checksum(artwork),
        }  # fmt: skip
        return Data(
            Stream(world, self.seed), world.heldout, emoji_tokenizer(settings), identity,
            classes=len(settings.categories) + 1,
        )  # fmt: skip


@no_type_check
@dataclass(frozen=True)
class CocoSource:
    """COCO's instances and captions files, and the image folder."""

    instances: str
    images: str
    image_size: int
    captions: str | None = None
    heldout: int = 0
    seed: int = 0
    flip: bool = False  # mirror half of the examples

    def open(self, folder: Path) -> Data:
        texts = None if self.captions is None else folder / self.captions
        return _files(self, read_coco(folder / self.instances, texts, folder / self.images))


@no_type_check
@dataclass(frozen=True)
class JsonlSource:
    """A JSONL file with one annotated image per line."""

    path: str
    image_size: int
    heldout: int = 0
    seed: int = 0
    flip: bool = False  # mirror half of the examples

    def open(self, folder: Path) -> Data:
        return _files(self, read_jsonl(folder / self.path))


SOURCES = {"emoji": EmojiSource, "coco": CocoSource, "jsonl": JsonlSource}


def _files(source: Any, found: Any) -> Data:
    """Holds out the last `heldout` entries; if that is 0, samples show training data.

    source: a CocoSource or JsonlSource. found: its entries, an iterator of Annotated | Rejected.
    """
    check_number("image_size", source.image_size, *between(1, MAX_SIDE), whole=True)
    check_number("heldout", source.heldout, *at_least(0), whole=True)
    check_number("seed", source.seed, *at_least(0), whole=True)
    if not isinstance(source.flip, bool):
        raise ValueError(f"flip is {source.flip!r}: it must be true or false")
    entries = list(found)
    good = [entry for entry in entries if isinstance(entry, Annotated)]
    _warn_of([entry for entry in entries if isinstance(entry, Rejected)], len(entries))
    if good and source.heldout >= len(good):
        raise ValueError(
            f"heldout is {source.heldout}, but there are only {len(good)} examples: hold out "
            "fewer, so that some are left to train on"
        )
    train, rest = good[: len(good) - source.heldout], good[len(good) - source.heldout :]
    size, seed, flip = source.image_size, source.seed, source.flip
    examples = Files(train, image_size=size, seed=seed, flip=flip)
    shown = Files(rest or train, image_size=size)
    identity = {
        "seed": seed, "image_size": size, "heldout": source.heldout,
        "examples": len(train), "annotations": _annotations_checksum(train),
    }  # fmt: skip
    if flip:  # absent otherwise, as in the records of runs from before there were flips
        identity["flip"] = True
    return Data(examples, lambda count: shown.batch(0, count), None, identity)


def _warn_of(rejected: Sequence[Rejected], count: int) -> None:
    for entry in rejected[:NAMED]:
        warnings.warn(f"skipped {entry.source}: {entry.reason}", stacklevel=2)
    if rejected:
        warnings.warn(
            f"skipped {len(rejected)} of {count} entries: fix or remove them",
            stacklevel=2,
        )


def _annotations_checksum(entries: Sequence[Annotated]) -> str:
    """Covers file names, captions, phrases and boxes, in order, but not the images."""
    digest = hashlib.sha256()
    for e in entries:
        line = [e.path.name, *e.captions, *e.phrases, *map(list, e.boxes)]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def _artwork_checksum(artwork: Artwork) -> str:
    digest = hashlib.sha256()
    for noun, pictograms in sorted(artwork.items()):
        for p in pictograms:
            digest.update(f"{noun} {p.family} {p.code} {p.pixels.shape}\n".encode())
            digest.update(p.pixels.tobytes())
    return digest.hexdigest()

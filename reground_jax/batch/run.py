"""What a run makes from each layout: `Run`, written to `run.json` when an output is started.

It holds everything that determines the images, and nothing about who makes them, where or when.
"""

import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Any

from reground_jax.attention_guidance import AttentionGuidance
from reground_jax.basics.fields import check_name
from reground_jax.basics.json_text import parse_json
from reground_jax.basics.wording import shown
from reground_jax.batch.manifest import SHARD_FORMATS
from reground_jax.batch.store import Store
from reground_jax.kinds import KINDS, GroundingKind
from reground_jax.readers import Rejected, attempt
from reground_jax.readers.lines import Line
from reground_jax.settings import MAX_SEED, Settings

IMAGE_FORMATS = ("png", "jpeg", "webp")
NAME = "run.json"
FORMAT = 1  # of run.json and of the output; incremented when older versions would misread it


@dataclass(frozen=True)
class Run:
    """A run: every combination of layout, wiring, gamma and run seed.

    settings     shared by all images; its wiring and gamma are ignored
    unit_lines   input lines per unit of work, which becomes one output shard
    batch_size   images per device at a time: it affects the images' last bits
    input_sha256 checksum of the input, as JSONL
    checkpoint   name of the model when the output was started, and its checksum
    kind, inpainting, persons  of the model, for the check of layouts
    """

    settings: Settings
    wirings: tuple[str, ...]
    gammas: tuple[Any, ...]
    seeds: tuple[int, ...]
    unit_lines: int
    batch_size: int
    shards: str
    image: str
    quality: int
    input_sha256: str
    checkpoint: str
    checkpoint_sha256: str
    kind: GroundingKind = "text"
    inpainting: bool = False
    persons: int = 8

    def __post_init__(self) -> None:
        check_name("format", self.shards, SHARD_FORMATS)
        check_name("kind", self.kind, KINDS)
        check_name("image", self.image, IMAGE_FORMATS)
        for name in ("unit_lines", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}: give 1..100")
        for seed in self.seeds:
            if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
                raise ValueError(f"run seed is {seed!r}: give integers from 0 to {MAX_SEED}")
        gammas = [dataclasses.replace(self.settings, gamma=gamma).gamma for gamma in self.gammas]
        object.__setattr__(self, "gammas", tuple(gammas))
        if len({isinstance(gamma, tuple) for gamma in gammas}) > 1:
            raise ValueError(
                f"gammas are {gammas}: give fractions or three parts, not both, so that all values "
                "in the metadata column have the same type"
            )
        for name in ("wirings", "gammas", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} are {list(values)}: give at least one, each once")
        self.variants()  # checks wirings

    def variants(self) -> list[tuple[Settings, int]]:
        """(settings, run seed) of each image of a layout, in the order of the output."""
        return [
            (dataclasses.replace(self.settings.with_method(wiring), gamma=gamma), seed)
            for wiring, gamma, seed in itertools.product(self.wirings, self.gammas, self.seeds)
        ]

    def sweeps(self) -> list[list[int]]:
        """The variants in groups that differ in nothing but gamma, which are made together."""
        gammas, seeds = len(self.gammas), len(self.seeds)
        return [
            [(wiring * gammas + gamma) * seeds + seed for gamma in range(gammas)]
            for wiring, seed in itertools.product(range(len(self.wirings)), range(seeds))
        ]

    def guidances(self) -> list[AttentionGuidance]:
        """The methods of attention guidance, of each wiring that has one."""
        found = (self.settings.with_method(wiring).attention_guidance for wiring in self.wirings)
        return [method for method in found if method is not None]

    def rules(self) -> dict[str, Any]:
        """The limits for layouts of this run: keyword arguments of `index.check_line`."""
        words = any(method.missing == "error" for method in self.guidances())
        rules: dict[str, Any] = {"max_boxes": self.settings.max_boxes, "seeds": len(self.seeds)}
        rules |= {"words": True} if words else {}
        own = {name: getattr(self, name) for name in _later()}
        return rules | {name: value for name, value in own.items() if value != _later()[name]}

    def key(self, line: int, variant: int) -> str:
        """The file name of an image without suffix: its line, from 0, and its variant, if any."""
        return f"{line:09d}" if len(self.variants()) == 1 else f"{line:09d}-{variant:02d}"

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self) | {"settings": self.settings.to_json()}
        return {"format": FORMAT, **json.loads(json.dumps(fields))}  # tuples become lists

    @classmethod
    def from_json(cls, value: Any) -> "Run":
        if not isinstance(value, dict):
            raise ValueError(f"it holds {shown(value)}: expected an object")
        if value.get("format") != FORMAT:
            raise ValueError(
                f"the output has format {value.get('format')!r}, this version reads {FORMAT}: "
                "use the version of reground-jax that started it"
            )
        value = {name: part for name, part in value.items() if name != "format"}
        _check_types(value)
        value["settings"] = Settings.from_json(value["settings"])
        lists: dict[str, Any] = {
            name: tuple(value[name]) for name in ("wirings", "gammas", "seeds")
        }
        return cls(**(value | lists))

    def differences(self, other: "Run") -> list[str]:
        """Every difference that would change images, as "name old -> new"; `other` is new."""
        found = other.settings.diff(self.settings)
        mine, theirs = self.to_json(), other.to_json()
        # The same model may have a different name today; only its checksum counts.
        for name in mine.keys() - {"settings", "checkpoint"}:
            if mine[name] != theirs[name]:
                found[name] = theirs[name], mine[name]
        return sorted(f"{name} {old} -> {new}" for name, (new, old) in found.items())


def _later() -> dict[str, Any]:
    """The fields that outputs of the first versions do not have, with their defaults."""
    missing = dataclasses.MISSING
    return {f.name: f.default for f in dataclasses.fields(Run) if f.default is not missing}


def _check_types(value: dict[str, Any]) -> None:
    kinds: dict[str, type] = {field.name: str for field in dataclasses.fields(Run)}
    kinds |= {"settings": dict, "wirings": list, "gammas": list, "seeds": list}
    kinds |= dict.fromkeys(("unit_lines", "batch_size", "quality", "persons"), int)
    kinds |= {"inpainting": bool}
    items = {"wirings": str, "seeds": int}
    for name, kind in kinds.items():
        part = value.get(name, _later().get(name))
        parts = part if isinstance(part, list) else []
        if type(part) is not kind or any(type(x) is not items.get(name, type(x)) for x in parts):
            raise ValueError(f"{name} is {shown(part)}, which is not what `batch` writes")


def seed_of(run_seed: int, line: Line) -> int:
    """The seed of a line's image: its own, or the first 4 bytes of SHA-256("<run seed>:<id>")."""
    if line.seed is not None:
        return line.seed
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{line.id}".encode()).digest()[:4], "big")


def check(store: Store, run: Run) -> None:
    """Raises ValueError that lists every difference from the run that started the output."""
    if NAME not in store.names(""):
        return
    if differences := read_run(store).differences(run):
        raise ValueError(
            f"{store.url} was started with different settings: {'; '.join(differences)}. "
            "Repeat the old ones to resume it, or choose another --out"
        )


def begin(store: Store, run: Run) -> Run:
    """Writes run.json if it is missing, and returns the stored run. Raises as `check` does."""
    store.create(NAME, json.dumps(run.to_json(), indent=1).encode())
    check(store, run)
    return read_run(store)


def read_run(store: Store) -> Run:
    """The run that an output was started with. Raises ValueError."""
    try:
        content = store.read(NAME)
    except FileNotFoundError as error:
        raise ValueError(f"{store.url} has no {NAME}: it is not an output of `batch`") from error
    found = attempt(f"{store.url}/{NAME}", lambda: Run.from_json(parse_json(content)))
    if isinstance(found, Rejected):
        raise ValueError(f"{found.source}: {found.reason}; if it is damaged, choose another --out")
    return found

"""The JSON config of a stage: where examples come from, the model's shape, the loss, the recipe.

    {"source": {"kind": "emoji", ...}, "model": {"vae": {...}, ...}, "loss": {...}, "recipe": {...}}

Only "source" and "recipe" are required. `configs/` holds the files that the shipped model was
trained with. Nothing here imports JAX.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, no_type_check

from reground_jax.basics.fields import at_least, check_name, check_number, parse
from reground_jax.basics.json_text import parse_json
from reground_jax.kinds import GroundingKind
from reground_jax.settings import DTYPES, WIRINGS, wiring_name
from reground_jax.training.recipe import Recipe
from reground_jax.unet_config import MapConfig

STAGE_NAMES = ("autoencoder", "text_to_image", "grounding", "decoder")
GROUNDED_WIRINGS = tuple(w for w in WIRINGS if w not in ("no_grounding", "coupled"))
# What the grounding stage can learn; sources have neither reference images nor key points.
LEARNED: tuple[GroundingKind, ...] = ("text", "sem")
FUSER_STARTS = ("gates", "outputs")
SAVE_DTYPES = (*DTYPES, "float16")
REMAT = ("none", "blocks")
FIELDS = (
    "source", "recipe", "model", "loss", "grounding", "map", "wiring", "fuser_start", "dtype",
    "save_dtype", "cache_examples", "num_samples", "remat",
)  # fmt: skip


@no_type_check  # so that the tests' type checker does not preempt the errors below
@dataclass(frozen=True)
class StageConfig:
    """One stage's JSON config; its relative paths are relative to that file.

    Raises ValueError for an unknown name or a number out of range.
    """

    source: dict[str, Any]
    recipe: Recipe
    model: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    grounding: GroundingKind = "text"  # for the grounding stage: what the fusers learn to read
    map: MapConfig | None = None  # how they read it, for "sem"
    wiring: str = "sequential"  # for the grounding stage
    fuser_start: str = "gates"  # what starts at zero in new fusers: "gates" (GLIGEN) or "outputs"
    dtype: str = "float32"  # for arithmetic; master weights are always float32
    save_dtype: str = "bfloat16"  # for the finished model
    cache_examples: int = 0  # latents cached and reused in every epoch; 0 disables the cache
    num_samples: int = 12  # images in a sample grid
    remat: str = "none"  # "blocks": recompute blocks in the backward pass, for less memory
    folder: Path = Path()

    def __post_init__(self) -> None:
        object.__setattr__(self, "wiring", wiring_name(self.wiring))
        check_name("wiring", self.wiring, GROUNDED_WIRINGS)
        check_name("grounding", self.grounding, LEARNED)
        if (self.grounding == "sem") != isinstance(self.map, MapConfig):
            raise ValueError(
                f"grounding is {self.grounding!r} and map is {self.map}: a semantic map needs a "
                'map, such as {"side": 64, "classes": 25}, and text has none'
            )
        check_name("fuser_start", self.fuser_start, FUSER_STARTS)
        check_name("dtype", self.dtype, DTYPES)
        check_name("save_dtype", self.save_dtype, SAVE_DTYPES)
        check_name("remat", self.remat, REMAT)
        check_number("num_samples", self.num_samples, *at_least(1), whole=True)
        check_number("cache_examples", self.cache_examples, *at_least(0), whole=True)
        check_cache(self.cache_examples, self.recipe.batch_size)
        for name in ("source", "model", "loss"):
            if not isinstance(value := getattr(self, name), dict):
                raise ValueError(f"{name} is {value!r}: it must be a JSON object")

    @classmethod
    def load(cls, path: str | Path) -> "StageConfig":
        """Raises ValueError that names the file and the problem."""
        path = Path(path)
        try:
            value = parse_json(path.read_bytes())
        except OSError as error:
            raise ValueError(f"cannot read config {path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"config {path} is not JSON: {error}") from error
        try:
            if isinstance(value, dict) and "recipe" in value:
                value["recipe"] = parse(Recipe, value["recipe"], "recipe")
            if isinstance(value, dict) and value.get("map") is not None:
                value["map"] = parse(MapConfig, value["map"], "map")
            config = parse(cls, value, "config", known=FIELDS)
        except ValueError as error:
            raise ValueError(f"config {path}: {error}") from error
        return replace(config, folder=path.parent)


def check_cache(examples: int, batch_size: int) -> None:
    """Raises ValueError for a cache that could not hold a single batch."""
    if 0 < examples < batch_size:
        raise ValueError(
            f"cache_examples is {examples}, less than a batch of {batch_size}: whole batches are "
            "cached, so give a multiple of batch_size, or 0 to disable the cache"
        )

"""From a request to images: finding and loading the model, and running it."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import UInt8

from reground_jax.basics.fields import check_name
from reground_jax.basics.options import option, read_number
from reground_jax.cli.progress import Bar, hint, say
from reground_jax.layout import Layout
from reground_jax.settings import DTYPES, Settings

if TYPE_CHECKING:
    from reground_jax.config import ModelConfig
    from reground_jax.devices import Mapper
    from reground_jax.pipeline import Pipeline


DEFAULT_MODEL = "emoji"
# Copied from devices.py and networks/attention.py, because importing those imports JAX.
MAPPERS = ("shard_map", "pmap")
BACKENDS = ("plain", "lean", "blocked", "cudnn", "pallas")


@no_type_check  # the tests' type checker must not run before the checks below
@dataclass(frozen=True)
class Setup:
    """Which model, and what it runs on. Raises ValueError for an invalid value."""

    model: str = option(
        DEFAULT_MODEL,
        "a directory that `reground-jax convert` made; emoji, a small model that draws pictograms "
        "and comes with the package; or a diffusers folder, a checkpoint file or a Hugging Face "
        "Hub id, which is converted once and kept in the cache",
        "DIR_OR_ID",
        group="model",
        aliases=("-m", "--checkpoint"),
    )
    cache: str | None = option(
        None,
        "where converted models are kept and, in DIR/xla, compiled programs (default: "
        "$XDG_CACHE_HOME/reground-jax, or else ~/.cache/reground-jax). Downloads from the Hub are "
        "kept where HF_HOME says",
        "DIR",
        group="model",
    )
    no_cache: bool = option(
        False, "compile from scratch, and do not keep the compiled programs", group="model"
    )
    batch_size: int | None = option(
        None,
        "images at a time on each device",
        "N",
        read=read_number,
        group="hardware",
        aliases=("--batch",),
    )
    attention: str | None = option(
        None,
        "how attention is computed: plain, lean or blocked (little memory), cudnn (NVIDIA) or "
        "pallas (TPU) (default: what suits the device and the size)",
        "NAME",
        group="hardware",
    )
    mapper: "Mapper" = option(
        "shard_map",
        "how JAX spreads the images over devices: shard_map or pmap",
        "NAME",
        group="hardware",
    )

    def __post_init__(self) -> None:
        size = self.batch_size
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise ValueError(f"--batch-size is {size}: give a whole number, at least 1")
        check_name("mapper", self.mapper, MAPPERS)
        if self.attention is not None:
            check_name("attention", self.attention, BACKENDS)


class Found(NamedTuple):
    """A model that was found; its arrays have not been read yet."""

    directory: Path
    checksum: str
    recommended: Mapping[str, Any]  # fields of Settings
    config: "ModelConfig | None" = None

    def settings(self, given: Mapping[str, Any]) -> Settings:
        """The model's recommended settings, overridden by the fields that are given."""
        return Settings(**{"dtype": DTYPES[0], **self.recommended, **given})

    def kind(self) -> dict[str, Any]:
        """What `Run` records of the model's kind."""
        if self.config is None or self.config.unet.grounding is None:
            return {}
        unet = self.config.unet
        return {"kind": unet.grounding, "inpainting": unet.inpainting, "persons": unet.persons}

    def check(self, layout: Layout, settings: Settings) -> None:
        """Raises ValueError for a layout or settings that the model does not take."""
        from reground_jax.request import check_model, check_whole

        assert self.config is not None
        check_whole(self.config, layout, settings.max_boxes)
        check_model(self.config, settings)


def find_model(name: str, cache: str | None) -> Found:
    """Raises ValueError or OSError if there is no such model."""
    directory = locate(name, cache)
    from reground_jax.model import read_description

    description = read_description(directory)
    return Found(directory, description.checksum, description.recommended, description.config)


def locate(name: str, cache: str | None = None) -> Path:
    """The model directory behind a name, as an absolute path.

    cache: the folder that --cache names. Raises ValueError or OSError.
    """
    hint(f"loading {name} ...")
    from reground_jax.basics.home import expand_home
    from reground_jax.convert.locate import model_directory
    from reground_jax.model import is_model_directory

    path = expand_home(name)
    if path.exists() and not is_model_directory(path):
        say(f"{name} is not a converted model: converting it once, into the cache")
    return model_directory(name, cache=cache).absolute()


def load(
    directory: Path, dtype: str | None, setup: Setup, *, devices: Sequence[Any] | None = None
) -> "Pipeline":
    """The pipeline of a model directory.

    Compiled programs are kept in the folder that --cache names, or in its default; if the default
    is not writable, they are not kept, with a warning.
    """
    import jax

    from reground_jax.pipeline import Pipeline

    if setup.no_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    elif setup.cache is not None:
        keep_programs(setup.cache)
    else:
        try:
            keep_programs()
        except (ValueError, OSError) as error:
            from reground_jax.cli import sentence

            jax.config.update("jax_enable_compilation_cache", False)
            warnings.warn(f"compiled programs are not kept: {sentence(error)}", stacklevel=2)
    return Pipeline.load(
        directory, dtype=dtype or "float32", devices=devices, attention=setup.attention,
        mapper=setup.mapper,
    )  # fmt: skip


def keep_programs(cache: str | None = None) -> None:
    """Turns on the compilation cache: in `cache`, or else by the environment or in the home.

    Raises ValueError or OSError if there is no such place.
    """
    import jax

    from reground_jax.basics.home import writable_cache

    named: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if cache is None and named is not None:  # by JAX_COMPILATION_CACHE_DIR
        return
    jax.config.update("jax_compilation_cache_dir", str(writable_cache(cache) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def sample(
    pipe: "Pipeline",
    layouts: Sequence[Layout],
    settings: Settings,
    seeds: Sequence[int],
    *,
    setup: Setup,
    label: str,
    announce: bool = True,
) -> list[UInt8[np.ndarray, "H W 3"]]:
    """One image per layout, with a progress bar of steps on stderr.

    announce: report once the devices, the dtype, and how long compilation took.
    """
    from reground_jax.devices import compile_clock

    if announce:
        hint("compiling ...")
    with compile_clock() as seconds, Bar(label, unit="step") as bar:

        def progress(batch: int, batches: int, step: int) -> None:
            if announce and (batch, step) == (0, 1):
                where = describe_devices(pipe.devices)
                say(f"{where}, {pipe.dtype}, compiled in {seconds():.1f} s")
            total = settings.num_steps
            bar.show(batch * total + step, batches * total)

        images = pipe(
            layouts, settings, seeds=seeds, batch_size=setup.batch_size, progress=progress
        )
    return [np.asarray(image) for image in images]


def describe_devices(devices: Sequence[Any]) -> str:
    count, kind = len(devices), devices[0].device_kind
    return kind if count == 1 else f"{count} x {kind}"

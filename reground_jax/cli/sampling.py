"""From a request to images: finding and loading the model, and running it."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from reground_jax.cli.progress import Bar, say
from reground_jax.layout import Layout
from reground_jax.settings import Settings

if TYPE_CHECKING:
    from reground_jax.pipeline import Pipeline


DEFAULT_MODEL = "emoji"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with what")
    group.add_argument(
        "--model", metavar="DIR_OR_ID",
        help="a directory that `reground-jax convert` made; or a diffusers folder, a checkpoint "
        "file or a Hugging Face Hub id, which is converted once, into the cache (default: emoji, a "
        "small model of pictograms that comes with the package)",
    )  # fmt: skip
    add_cache_option(group)
    group.add_argument(
        "--no-cache", action="store_true",
        help="compile anew, and keep nothing of it in the cache",
    )  # fmt: skip


def add_cache_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--cache", metavar="DIR",
        help="where converted models and, in DIR/xla, compiled programs are kept (default: "
        "$XDG_CACHE_HOME/reground-jax, or else ~/.cache/reground-jax); downloads from the Hub are "
        "kept where HF_HOME says",
    )  # fmt: skip


def locate(name: str | None, cache: str | None = None) -> Path:
    """The model directory behind a name, or of the default model, as an absolute path.

    cache: the folder that --cache names. Raises ValueError or OSError.
    """
    name = name or DEFAULT_MODEL
    from reground_jax.convert.locate import model_directory
    from reground_jax.home import expand_home
    from reground_jax.model import is_model_directory

    path = expand_home(name)
    if path.exists() and not is_model_directory(path):
        say(f"{name} is no converted model: converting it, once, into the cache")
    return model_directory(name, cache=cache).absolute()


def load(
    directory: Path,
    dtype: str | None,
    *,
    keep: bool,
    cache: str | None = None,
    devices: Sequence[Any] | None = None,
    mapper: str = "shard_map",
) -> "Pipeline":
    """The pipeline of a model directory.

    keep: whether compiled programs are kept, in the folder that --cache names or its default.
    Where the default cannot be written, they are not, which is said.
    """
    import jax

    from reground_jax.pipeline import Pipeline

    if not keep:
        jax.config.update("jax_enable_compilation_cache", False)
    elif cache is not None:
        keep_programs(cache)
    else:
        try:
            keep_programs()
        except (ValueError, OSError) as error:
            from reground_jax.cli import sentence

            jax.config.update("jax_enable_compilation_cache", False)
            warnings.warn(f"compiled programs are not kept: {sentence(error)}", stacklevel=2)
    return Pipeline.load(directory, dtype=dtype or "float32", devices=devices, mapper=mapper)


def keep_programs(cache: str | None = None) -> None:
    """Turns the compilation cache on, in a folder, or where the environment or the user's home say.

    Raises ValueError or OSError where there is no such place.
    """
    import jax

    from reground_jax.home import writable_cache

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
    label: str,
    announce: bool = True,
    batch_size: int | None = None,
) -> list[UInt8[np.ndarray, "H W 3"]]:
    """An image per layout, with a bar of steps on stderr.

    announce: say once on what and in which dtype, and how long it took to compile.
    """
    from reground_jax.devices import compile_clock

    with compile_clock() as seconds, Bar(label, unit="step") as bar:

        def progress(batch: int, batches: int, step: int) -> None:
            if announce and (batch, step) == (0, 1):
                where = describe_devices(pipe.devices)
                say(f"{where}, {pipe.dtype}, compiled in {seconds():.1f} s")
            total = settings.num_steps
            bar.show(batch * total + step, batches * total)

        images = pipe(layouts, settings, seeds=seeds, batch_size=batch_size, progress=progress)
    return [np.asarray(image) for image in images]


def describe_devices(devices: Sequence[Any]) -> str:
    count, kind = len(devices), devices[0].device_kind
    return kind if count == 1 else f"{count} x {kind}"

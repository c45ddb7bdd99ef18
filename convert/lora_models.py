"""Adds LoRAs to a model directory, without the checkpoint that it was converted from."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reground_jax.model import leaf_shapes, read_description, stored_arrays, write_model
from reground_jax.version import __version__

from .full_disk import naming_a_full_disk
from .keys import Leaf, count, leaves_of
from .lora import Deltas, Lora, deltas_of
from .low_rank import add
from .passing import Progress, passed


def add_to_model(
    base: Path,
    destination: str | Path,
    loras: Sequence[Lora],
    others: Iterable[str] = (),
    dtype: np.dtype | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes the model in directory `base` with LoRAs added to `destination`; returns its `info`.

    The new directory stands on `base`, which must stay where it is: it holds only the arrays that
    differ. With a dtype all arrays may differ, and it stands alone. Raises as `convert` does, and
    ValueError for any of its other arguments, which are in `others` by name.
    """
    if options := ", ".join(f"--{name.replace('_', '-')}" for name in others):
        raise ValueError(f"{base} is a model directory already, so leave out {options}")
    old = read_description(base)
    leaves = leaves_of(leaf_shapes(old.config))
    deltas = deltas_of(loras, leaves)
    arrays = _with_deltas(base, leaves, deltas, dtype)

    def refuse(leaf: Leaf, stored: np.dtype) -> None:
        raise ValueError(
            f"{base}: {leaf.path} has NaN, or values too large for {stored} with the LoRAs added: "
            "use --dtype bfloat16 or float32; `reground-jax info --check` finds NaN in a model"
        )

    info = {name: fact for name, fact in old.info.items() if name != "nonfinite"}
    records = [*info.get("loras", []), *(lora.record() for lora in loras)]
    info |= {"version": __version__, "loras": records}
    with naming_a_full_disk(Path(destination)):
        return write_model(
            destination,
            old.config,
            passed(arrays, count(leaves), dtype, progress, refuse),
            old.tokenizer_json,
            info,
            base=base if dtype is None else None,
            recommended=old.recommended,
        )


def _with_deltas(
    base: Path, leaves: Sequence[Leaf], deltas: Deltas, dtype: np.dtype | None
) -> Iterator[tuple[Leaf, np.ndarray]]:
    """The arrays of a model; those that a LoRA changes are unpacked, added to, and packed again."""
    named = {leaf.path: leaf for leaf in leaves}
    for path, array in stored_arrays(base):
        leaf, own = named[path], deltas.get(path.split("/")[0], {})
        if not own.keys().isdisjoint(leaf.sources):
            parts = zip(leaf.split(array), leaf.sources, strict=True)
            array = leaf.build([add(part, own.get(name, ()), dtype) for part, name in parts])
        yield leaf, array

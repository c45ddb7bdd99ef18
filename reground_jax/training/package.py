"""`python -m reground_jax.training.package`: copies a finished model into the package.

With --base, only what differs from the base model is stored: fusers and position net.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from reground_jax.basics.atomic import write_text
from reground_jax.model import read_model, write_model
from reground_jax.storage.checkpoint import flatten


def package(
    source: Path, target: Path, base: Path | None, recommended: dict[str, Any] | None = None
) -> int:
    """Rewrites the model directory in bfloat16 and returns its size on disk in bytes.

    recommended: recommended fields of Settings, by default those of `source`. A model card in
    `target` is kept. Raises ValueError if the model does not match `base`.
    """
    model = read_model(source)
    card = target / "README.md"
    text = card.read_text("utf-8") if card.exists() else None
    shutil.rmtree(target, ignore_errors=True)
    arrays = ((name, np.asarray(a).astype(ml_dtypes.bfloat16)) for name, a in flatten(model.params))
    info = {key: value for key, value in model.info.items() if key in ("source", "training")}
    write_model(
        target, model.config, arrays, model.tokenizer_json, info, base=base,
        recommended=model.recommended if recommended is None else recommended,
    )  # fmt: skip
    if text is not None:
        write_text(card, text)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="model directory of the last stage")
    parser.add_argument("target", type=Path, help="for example reground_jax/models/emoji")
    parser.add_argument("--base", type=Path, help="packaged model that this one builds on")
    parser.add_argument(
        "--recommended", type=json.loads, metavar="JSON", help="for example '{\"num_steps\": 20}'"
    )
    given = parser.parse_args(arguments)
    size = package(given.source, given.target, given.base, given.recommended)
    print(f"{given.target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

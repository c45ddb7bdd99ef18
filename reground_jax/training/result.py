"""The result of a stage: OUT/model, with a record of how it was trained."""

import dataclasses
import time

import jax.numpy as jnp
import numpy as np

from reground_jax.config import ModelConfig
from reground_jax.model import write_model
from reground_jax.training.opening import Stage
from reground_jax.training.trainer import Trainer


def write_result(stage: Stage, model: ModelConfig, trainer: Trainer) -> None:
    """Writes OUT/model: the averaged weights, and all frozen parameters unchanged."""
    leaves = stage.leaves | trainer.state.average
    kind = jnp.dtype(stage.config.save_dtype)
    record = {
        "stage": stage.kind,
        "steps": int(trainer.state.step),
        "recipe": dataclasses.asdict(stage.config.recipe),
        "wiring": stage.config.wiring if stage.kind == "grounding" else None,
        # No paths: they mean nothing on other machines.
        "source": {k: v for k, v in stage.config.source.items() if k in ("kind", "world", "seed")},
        "finished": time.strftime("%Y-%m-%d"),
    }
    if trainer.changes:
        record["changes"] = trainer.changes
    info = {**stage.info, "training": [*stage.info["training"], record]}
    arrays = ((name, np.asarray(leaf).astype(kind)) for name, leaf in leaves.items())
    write_model(stage.out / "model", model, arrays, stage.tokenizer_json, info)
    print(f"wrote {stage.out / 'model'}")

"""The training loop: one compiled step over all devices, with logging, samples and checkpoints.

Data parallel: each device takes its share of the batch, and gradients are averaged. A checkpoint
holds everything a step reads, so a killed run resumes with identical results, bit for bit.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from reground_jax.devices import SPLIT, WHOLE, Device, Mapped, over_devices, place_whole
from reground_jax.training.data import prefetch
from reground_jax.training.experiment import Changes, changes_since, identity_of
from reground_jax.training.losses import Loss
from reground_jax.training.optimizer import optimizer
from reground_jax.training.recipe import Recipe
from reground_jax.training.signals import asked_to_stop
from reground_jax.training.state import (
    Leaves,
    TrainState,
    initial_state,
    latest_state,
    load_state,
    moving_average,
    nested,
    read_record,
    save_state,
)


class Diverged(ValueError):
    """The loss or gradient norm is NaN or infinite; the message says what to do."""


def train_step(
    loss: Loss, recipe: Recipe, state: TrainState, frozen: Leaves, batch: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on this device's share of the batch; runs inside `over_devices`."""
    gradients, metrics = averaged_gradients(loss, state.params, frozen, batch)
    updates, moments = optimizer(recipe).update(gradients, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    average = moving_average(state.average, params, state.step, recipe.average_decay)  # type: ignore[arg-type]
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    return TrainState(state.step + 1, params, average, moments), metrics  # type: ignore[arg-type]


def averaged_gradients(
    loss: Loss, params: Leaves, frozen: Leaves, batch: Any
) -> tuple[Leaves, dict[str, jax.Array]]:
    """Gradients with respect to `params`, and metrics, averaged over the devices."""

    def value(trained: Leaves) -> tuple[jax.Array, dict[str, jax.Array]]:
        return loss(nested(trained, frozen), batch)

    (total, metrics), gradients = jax.value_and_grad(value, has_aux=True)(params)
    return jax.lax.pmean((gradients, {"loss": total, **metrics}), "data")


def compiled_step(loss: Loss, recipe: Recipe, devices: Sequence[Device]) -> Mapped:
    """`train_step` over devices: (state, frozen, batch) -> (state, metrics). Donates the state.

    Raises ValueError if the batch does not divide evenly.
    """
    if recipe.batch_size % len(devices):
        raise ValueError(
            f"batch_size {recipe.batch_size} does not divide evenly over "
            f"{len(devices)} devices: choose a multiple"
        )
    return over_devices(
        lambda state, frozen, batch: train_step(loss, recipe, state, frozen, batch),
        (WHOLE, WHOLE, SPLIT),
        WHOLE,
        devices=devices,
        donate=(0,),
    )


@dataclass(eq=False)
class Trainer:
    """A run in a folder: OUT/state/ (checkpoints), OUT/log.jsonl, OUT/samples/.

    make_batch(i) returns the batch of step i; examples are along each array's first axis.
    on_sample(step, averaged parameters by flat name) is called every `sample_every` steps.
    experiment: what results depend on besides the recipe, as JSON; checkpoints record both, and a
    run resumes under a different one only with `accept_changes` (see experiment.py).

    Raises ValueError if the batch does not divide evenly, or if the experiment differs.
    """

    loss: Loss
    recipe: Recipe
    trained: Leaves
    frozen: Leaves
    make_batch: Callable[[int], Any]
    out: Path
    devices: tuple[Device, ...]
    on_sample: Callable[[int, Leaves], None] | None = None
    experiment: Mapping[str, Any] = field(default_factory=dict)
    accept_changes: bool = False
    changes: Changes = field(init=False, default_factory=list)  # to the experiment, so far
    state: TrainState = field(init=False)

    def __post_init__(self) -> None:
        self._step = compiled_step(self.loss, self.recipe, self.devices)
        self.experiment = identity_of(self.recipe, self.experiment)
        path = latest_state(self.out / "state")
        if path is not None:
            self.changes = changes_since(
                read_record(path), self.experiment, checkpoint=path, accept=self.accept_changes
            )
        state = initial_state(self.trained, optimizer(self.recipe))
        if path is not None:
            state = load_state(path, state)
        self._saved = int(state.step)
        self.state = jax.tree.map(self._place, state)
        self.frozen = {n: place_whole(leaf, self.devices) for n, leaf in self.frozen.items()}

    def _place(self, leaf: Any) -> jax.Array:
        # Copied, because the step donates the buffers of its input state.
        return place_whole(jnp.array(leaf), self.devices)

    def run(self, *, minutes: float | None = None, progress: bool = True) -> bool:
        """Trains to the recipe's end, until `minutes` have passed, or until asked to stop.

        Saves a final checkpoint, also on SIGTERM, on Ctrl-C (re-raised afterwards), and on an error
        in the data or in `on_sample`. After SIGKILL, a second Ctrl-C or an error within a step, the
        previous checkpoint remains. Returns True if all steps are done.

        Raises Diverged, and keeps the last good checkpoint, once the loss is NaN or infinite.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        with asked_to_stop() as asked, self._bar(progress) as bar:
            batches = prefetch(self.make_batch, int(self.state.step))
            try:
                self._loop(batches, bar, lambda: bool(asked) or time.monotonic() > end)
            finally:
                batches.close()  # type: ignore[attr-defined]
        if asked.by_keyboard:
            raise KeyboardInterrupt
        return int(self.state.step) >= self.recipe.end

    def _loop(self, batches: Iterator[Any], bar: tqdm, stop: Callable[[], bool]) -> None:
        recipe, first = self.recipe, int(self.state.step)
        step, since, count = first, time.monotonic(), 0
        metrics: dict[str, jax.Array] = {}
        try:
            # At least one step per run, so that even very short runs make progress.
            while step < recipe.end and (step == first or not stop()):
                batch = next(batches)
                self.state, metrics = self._step(self.state, self.frozen, batch)
                step, count = step + 1, count + 1
                if step % recipe.log_every == 0 or step == recipe.end:
                    values = self._finite(step, metrics)
                    speed = count * recipe.batch_size / (time.monotonic() - since)
                    self._log(step, values, speed)
                    bar.set_postfix(loss=f"{values['loss']:.4f}", images_per_s=f"{speed:.0f}")
                    since, count = time.monotonic(), 0
                bar.update()
                if self.on_sample and (step % recipe.sample_every == 0 or step == recipe.end):
                    self.on_sample(step, self.state.average)
                    since, count = time.monotonic(), 0
                if step % recipe.save_every == 0:
                    self._save(step, metrics)
                    since, count = time.monotonic(), 0
        except Diverged:
            raise
        except Exception:
            if not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):
                self._save(step, metrics)  # skipped if a failed step has already donated its state
            raise
        self._save(step, metrics)

    def _save(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Saves a checkpoint unless this step has one. Raises Diverged if it would be bad."""
        if step == self._saved:
            return
        self._finite(step, metrics)
        record = {"experiment": self.experiment, "changes": self.changes}
        save_state(self.out / "state", self.state, record)
        self._saved = step

    def _finite(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        values = {name: float(value) for name, value in metrics.items()}
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values[name]):
                kept = latest_state(self.out / "state")
                raise Diverged(
                    f"training diverged: {name} is {values[name]} at step {step}; the last good "
                    f"checkpoint is {kept or 'none'}. Choose a lower learning_rate or more "
                    "warmup_steps (or dtype float32), and start over in another --out, or continue "
                    "from that checkpoint with --accept-changes"
                )
        return values

    def _log(self, step: int, values: dict[str, float], speed: float) -> None:
        line = {"step": step, **values, "images_per_s": round(speed, 1), "time": time.time()}
        with open(self.out / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def _bar(self, progress: bool) -> tqdm:
        return tqdm(
            total=self.recipe.end,
            initial=int(self.state.step),
            disable=not progress,
            mininterval=5,
            unit="step",
        )

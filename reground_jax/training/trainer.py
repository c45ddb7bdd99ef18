"""The training loop: one compiled step over all devices, and what happens around it.

Data parallel: each device takes its share of the batch, and gradients are averaged. A checkpoint
holds all that a step reads, so a run that is killed goes on with the same numbers, bit for bit.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon
from tqdm import tqdm

from reground_jax.devices import SPLIT, WHOLE, Device, over_devices, place_whole
from reground_jax.training.data import prefetch
from reground_jax.training.losses import Loss
from reground_jax.training.state import (
    Leaves,
    TrainState,
    initial_state,
    latest_state,
    load_state,
    moving_average,
    nested,
    save_state,
)

GATES = ("/fuser/alpha_attn", "/fuser/alpha_dense")


@dataclass(frozen=True)
class Recipe:
    """How to optimise: warm-up, clipped gradients, and an average of the weights.

    optimizer: "adamw", or "muon": kernels by Muon (Jordan et al. 2024), as large as AdamW's
    updates (arXiv 2502.16982), and the rest by AdamW. On the small autoencoder of `configs/emoji64`
    it needs fewer steps; it costs a few matrix products of every kernel per step.
    """

    num_steps: int  # of the learning rate's decay
    batch_size: int  # over all devices
    last_step: int | None = None  # where the run ends; None: at `num_steps`
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    decay: str = "cosine"  # to zero at `num_steps`; or "constant"
    weight_decay: float = 0.01  # on kernels alone
    beta2: float = 0.99
    clip_norm: float = 1.0
    average_decay: float = 0.999
    gate_rate: float = 1.0  # learning rate of the fusers' gates, in learning rates of the rest
    seed: int = 0
    log_every: int = 20
    sample_every: int = 500
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.decay not in ("cosine", "constant"):
            raise ValueError(f"decay is {self.decay!r}: it must be 'cosine' or 'constant'")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer is {self.optimizer!r}: it must be 'adamw' or 'muon'")
        for name in ("num_steps", "batch_size", "log_every", "sample_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 1 <= self.end <= self.num_steps:
            raise ValueError(
                f"last_step is {self.last_step}: it must be 1..{self.num_steps}, the steps that "
                "there are learning rates for"
            )

    @property
    def end(self) -> int:
        return self.num_steps if self.last_step is None else self.last_step

    def learning_rates(self) -> optax.Schedule:
        warm = optax.linear_schedule(0.0, self.learning_rate, max(self.warmup_steps, 1))
        after = optax.constant_schedule(self.learning_rate)
        if self.decay == "cosine":
            left = max(self.num_steps - self.warmup_steps, 1)
            after = optax.cosine_decay_schedule(self.learning_rate, left)
        return optax.join_schedules([warm, after], [self.warmup_steps])

    def transform(self) -> optax.GradientTransformation:
        """The optimiser over flat parameters."""

        def kernels(params: Leaves) -> dict[str, bool]:
            return {name: name.endswith("kernel") for name in params}

        def matrices(params: Leaves) -> dict[str, MuonDimensionNumbers | None]:
            """Kernels as matrices: the last axis is the output, a convolution's rest the input."""
            return {
                name: MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)
                if name.endswith("kernel")
                else None
                for name, leaf in params.items()
            }

        rates = self.learning_rates()
        if self.optimizer == "muon":
            step = muon(
                rates,
                weight_decay=self.weight_decay,
                adam_b2=self.beta2,
                muon_weight_dimension_numbers=matrices,  # type: ignore[arg-type]
                consistent_rms=0.2,
            )
        else:
            step = optax.adamw(rates, b2=self.beta2, weight_decay=self.weight_decay, mask=kernels)

        def hurry_gates(updates: Leaves, _: Any) -> Leaves:
            """A gate is one number that moves by a learning rate per step: short runs need more."""
            return {
                name: update * (self.gate_rate if name.endswith(GATES) else 1)
                for name, update in updates.items()
            }

        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            step,
            optax.stateless(hurry_gates),  # type: ignore[arg-type]
        )


def train_step(
    loss: Loss, recipe: Recipe, state: TrainState, frozen: Leaves, batch: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on this device's share of the batch; runs inside `over_devices`."""
    gradients, metrics = averaged_gradients(loss, state.params, frozen, batch)
    updates, moments = recipe.transform().update(gradients, state.moments, state.params)
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


@dataclass(eq=False)
class Trainer:
    """A run in a folder: OUT/state/ (checkpoints), OUT/log.jsonl, OUT/samples/.

    make_batch(i) gives the batch of step i, with its rows along first axes. on_sample(step,
    averaged parameters by flat name) is called every `sample_every` steps.
    """

    loss: Loss
    recipe: Recipe
    trained: Leaves
    frozen: Leaves
    make_batch: Callable[[int], Any]
    out: Path
    devices: tuple[Device, ...]
    on_sample: Callable[[int, Leaves], None] | None = None
    state: TrainState = field(init=False)

    def __post_init__(self) -> None:
        if self.recipe.batch_size % len(self.devices):
            raise ValueError(
                f"batch_size {self.recipe.batch_size} does not divide over {len(self.devices)} "
                "devices: choose a multiple"
            )
        state = initial_state(self.trained, self.recipe.transform())
        if (path := latest_state(self.out / "state")) is not None:
            state = load_state(path, state)
        self.state = jax.tree.map(self._place, state)
        self.frozen = {name: self._place(leaf) for name, leaf in self.frozen.items()}
        self._step = over_devices(
            lambda state, frozen, batch: train_step(self.loss, self.recipe, state, frozen, batch),
            (WHOLE, WHOLE, SPLIT),
            WHOLE,
            devices=self.devices,
            donate=(0,),
        )

    def _place(self, leaf: Any) -> jax.Array:
        # A copy of our own: the step takes over the memory of what it is given.
        return place_whole(jnp.array(leaf), self.devices)

    def run(self, *, minutes: float | None = None, progress: bool = True) -> bool:
        """Trains to the recipe's end, or until `minutes` have passed or SIGTERM comes.

        Always ends in a checkpoint. True if all steps are done.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        with _terminated() as terminated, self._bar(progress) as bar:
            batches = prefetch(self.make_batch, int(self.state.step))
            try:
                self._loop(batches, bar, lambda: terminated() or time.monotonic() > end)
            finally:
                batches.close()  # type: ignore[attr-defined]
        return int(self.state.step) >= self.recipe.end

    def _loop(self, batches: Iterator[Any], bar: tqdm, stop: Callable[[], bool]) -> None:
        recipe, first = self.recipe, int(self.state.step)
        step, saved, since, count = first, first, time.monotonic(), 0
        # At least one step, so that however short the stretches are, the end comes.
        while step < recipe.end and (step == first or not stop()):
            self.state, metrics = self._step(self.state, self.frozen, next(batches))
            step, count = step + 1, count + 1
            if step % recipe.log_every == 0 or step == recipe.end:
                values = {name: float(value) for name, value in metrics.items()}
                speed = count * recipe.batch_size / (time.monotonic() - since)
                self._log(step, values, speed)
                bar.set_postfix(loss=f"{values['loss']:.4f}", images_per_s=f"{speed:.0f}")
                since, count = time.monotonic(), 0
            bar.update()
            if self.on_sample and (step % recipe.sample_every == 0 or step == recipe.end):
                self.on_sample(step, self.state.average)
                since, count = time.monotonic(), 0
            if step % recipe.save_every == 0:
                save_state(self.out / "state", self.state)
                saved, since, count = step, time.monotonic(), 0
        if saved != step:
            save_state(self.out / "state", self.state)

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


class _terminated:
    """`with _terminated() as asked:` asked() says whether SIGTERM has come meanwhile."""

    def __enter__(self) -> Callable[[], bool]:
        self.asked = False
        try:
            self.before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not the main thread: then nobody sends us signals
            self.before = None
        return lambda: self.asked

    def _note(self, *_: Any) -> None:
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

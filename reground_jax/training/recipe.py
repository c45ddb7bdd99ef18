"""The recipe: how a stage is optimized, as specified in its config file.

Nothing here imports JAX, so that configs are checked before anything is loaded; `optimizer.py`
builds the optimizer from it.
"""

from dataclasses import dataclass
from typing import no_type_check

from reground_jax.basics.fields import (
    FRACTION,
    POSITIVE,
    at_least,
    between,
    check_name,
    check_number,
)
from reground_jax.settings import MAX_SEED

RULES = (  # (field, allowed range, whether it is a whole number)
    ("num_steps", at_least(1), True),
    ("batch_size", at_least(1), True),
    ("learning_rate", POSITIVE, False),
    ("warmup_steps", at_least(0), True),
    ("weight_decay", at_least(0), False),
    ("beta2", FRACTION, False),
    ("clip_norm", POSITIVE, False),
    ("average_decay", FRACTION, False),
    ("gate_rate", at_least(0), False),
    ("seed", between(0, MAX_SEED), True),
    ("log_every", at_least(1), True),
    ("sample_every", at_least(1), True),
    ("save_every", at_least(1), True),
)
# Fields that do not affect any step's results: a run may resume with other values.
FREE = ("last_step", "log_every", "sample_every", "save_every")


@no_type_check  # so that the tests' type checker does not preempt the errors below
@dataclass(frozen=True)
class Recipe:
    """How to optimize: warm-up, gradient clipping, and an average of the weights.

    optimizer: "adamw", or "muon", which uses Muon for kernels (Jordan et al. 2024), with updates
    scaled to match AdamW's (arXiv 2502.16982), and AdamW for the rest. On the small autoencoder of
    `configs/emoji64` Muon needs fewer steps; it costs a few matrix products per kernel and step.
    """

    num_steps: int  # length of the learning rate schedule
    batch_size: int  # total over all devices
    last_step: int | None = None  # where the run ends; None means `num_steps`
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    decay: str = "cosine"  # to zero at `num_steps`; or "constant"
    weight_decay: float = 0.01  # applied to kernels only
    beta2: float = 0.99
    clip_norm: float = 1.0
    average_decay: float = 0.999
    gate_rate: float = 1.0  # multiplies the learning rate of the fusers' gates
    seed: int = 0
    log_every: int = 20
    sample_every: int = 500
    save_every: int = 500

    def __post_init__(self) -> None:
        check_name("decay", self.decay, ("cosine", "constant"))
        check_name("optimizer", self.optimizer, ("adamw", "muon"))
        for name, rule, whole in RULES:
            check_number(name, getattr(self, name), *rule, whole=whole)
        if self.last_step is not None:
            check_number("last_step", self.last_step, *at_least(1), whole=True)
        if not 1 <= self.end <= self.num_steps:
            raise ValueError(
                f"last_step is {self.last_step}: it must be 1..{self.num_steps}, since the "
                "learning rate schedule ends there"
            )

    @property
    def end(self) -> int:
        return self.num_steps if self.last_step is None else self.last_step

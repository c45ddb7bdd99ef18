"""What all solvers share: a plan with one row per U-Net evaluation, a state, and their math.

Coefficients are computed on the host in float64, once per (schedule, number of steps), and passed
to the device as float32 rows, so the update is a few multiply-adds without branches.
Every state is float32 and lies on the forward process x = alpha * x_0 + sigma * noise.

A step that adds noise goes to less noise than the next state has, and `fresh` noise makes up for
it: x' = alpha' * x_0 + sqrt(sigma'^2 - fresh^2) * epsilon + fresh * noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int32

from reground_jax.basics.short_repr import short_repr
from reground_jax.config import NoiseSchedule
from reground_jax.settings import ETA_SOLVERS


class Plan(NamedTuple):
    """One row per evaluation of the U-Net (M rows), or one such row (`Plan.row`: scalars).

    A step has one row or several consecutive ones: the first step of PLMS has two.
    """

    timesteps: Float32[Array | np.ndarray, "*M"]  # input of the U-Net; Euler's may be fractional
    step: Int32[Array | np.ndarray, "*M"]  # the step that the evaluation belongs to, from 0
    first: Bool[Array | np.ndarray, "*M"]  # whether it is the first evaluation of its step
    input_scale: Float32[Array | np.ndarray, "*M"]  # the U-Net sees state.x * input_scale
    alpha: Float32[Array | np.ndarray, "*M"]  # the state here is alpha * x_0 + sigma * noise
    sigma: Float32[Array | np.ndarray, "*M"]
    fresh: Float32[Array | np.ndarray, "*M"]  # `update` adds this times unit normal noise
    initial_scale: Float32[Array | np.ndarray, ""]  # x_T is initial_scale times unit normal noise
    coefficients: dict[str, Float32[Array, "..."]]  # columns that only the solver's update reads

    __repr__ = short_repr

    def row(self, evaluation: int | Int32[Array, ""]) -> "Plan":
        """The row of one evaluation, whose index may be traced. Keeps `initial_scale`."""
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[evaluation] if np.ndim(leaf) else leaf, self
        )

    def evaluations_before(self, step: int | Int32[Array, ""]) -> Int32[Array, ""]:
        """How many evaluations come before `step`: converts a bound in steps to one in rows."""
        return jnp.sum(jnp.asarray(self.step) < step, dtype=jnp.int32)


class State(NamedTuple):
    """What is carried from one evaluation to the next. Solvers change `x` and `history`."""

    x: Float32[Array, "B H W C"]  # where the U-Net is evaluated next
    history: tuple[Float32[Array, "B H W C"], ...] = ()  # earlier outputs, newest first
    latched: Float32[Array, "B"] | None = None  # last losses of methods of attention guidance

    __repr__ = short_repr


@dataclass(frozen=True)
class Solver:
    """Three functions. Hashable, so a solver can be a static argument of a jitted function.

    rows(schedule, num_steps) -> Plan               on the host; ValueError if not supported
    init(x_T, plan) -> State                        x_T: [B,H,W,C] float32, unit normal
    update(state, output, row, noise=None) -> State output: [B,H,W,C] guided epsilon or v
    takes_eta   `rows` takes a keyword `eta`; if it is above 0, `update` needs unit normal `noise`
    adds_noise  `update` always needs it
    """

    rows: Callable[..., Plan]
    init: Callable[[Any, Plan], State]
    update: Callable[..., State]
    takes_eta: bool = False
    adds_noise: bool = False

    def plan(self, schedule: NoiseSchedule, num_steps: int, *, eta: float = 0.0) -> Plan:
        """One row per evaluation. Raises ValueError for what the solver does not support."""
        if self.takes_eta:
            return self.rows(schedule, num_steps, eta=eta)
        if eta != 0:
            takers = " or ".join(map(repr, ETA_SOLVERS))
            raise ValueError(
                f"eta is {eta}, but this solver does not take eta: set eta=0 or use {takers}"
            )
        return self.rows(schedule, num_steps)

    def stochastic(self, eta: float) -> bool:
        """Whether `update` needs noise."""
        return self.adds_noise or (self.takes_eta and eta > 0)


def init(x_T: Float[Array, "B H W C"], plan: Plan) -> State:
    """The state of a solver without history, at unit normal `x_T`."""
    return State(x=(x_T * plan.initial_scale).astype(jnp.float32))


def add_noise(state: State, row: Plan, noise: Float32[Array, "B H W C"]) -> State:
    """`state` with a step's fresh noise, from unit normal `noise`."""
    return state._replace(x=state.x + row.fresh * noise)


def make_plan(
    *,
    timesteps: np.ndarray,
    alpha: np.ndarray,
    sigma: np.ndarray,
    coefficients: dict[str, np.ndarray],
    fresh: np.ndarray | None = None,
    step: np.ndarray | None = None,
    input_scale: np.ndarray | None = None,
    initial_scale: float = 1.0,
) -> Plan:
    """Round float64 columns to the plan's dtypes.

    By default, no step adds noise, and each has one evaluation.
    """
    rows = len(timesteps)
    step = np.arange(rows) if step is None else step
    input_scale = np.ones(rows) if input_scale is None else input_scale
    return Plan(
        timesteps=np.asarray(timesteps, np.float32),
        step=np.asarray(step, np.int32),
        first=np.diff(step, prepend=-1) > 0,
        input_scale=np.asarray(input_scale, np.float32),
        alpha=np.asarray(alpha, np.float32),
        sigma=np.asarray(sigma, np.float32),
        fresh=np.zeros(rows, np.float32) if fresh is None else np.asarray(fresh, np.float32),
        initial_scale=np.asarray(initial_scale, np.float32),
        coefficients={name: np.asarray(c, np.float32) for name, c in coefficients.items()},  # type: ignore[arg-type]
    )


def epsilon_weights(
    schedule: NoiseSchedule, alpha: Float64[np.ndarray, "M"], sigma: Float64[np.ndarray, "M"]
) -> tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"]]:
    """(p, q) such that epsilon = p * x + q * output, where x = alpha * x_0 + sigma * epsilon.

    v = alpha * epsilon - sigma * x_0 (Salimans & Ho 2022) with alpha^2 + sigma^2 = 1.
    """
    if schedule.prediction_type == "v_prediction":
        return sigma, alpha
    return np.zeros_like(alpha), np.ones_like(alpha)


def x0_weights(
    schedule: NoiseSchedule, alpha: Float64[np.ndarray, "M"], sigma: Float64[np.ndarray, "M"]
) -> tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"]]:
    """(p, q) such that x_0 = p * x + q * output; the counterpart of `epsilon_weights`.

    alpha may be 0 for v only (`NoiseSchedule` sees to it).
    """
    if schedule.prediction_type == "v_prediction":
        return alpha, -sigma
    return 1 / alpha, -sigma / alpha


def ddim_transfer(
    now: Float64[np.ndarray, "M"], after: Float64[np.ndarray, "M"]
) -> tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"]]:
    """(a, b) of the DDIM step x' = a * x + b * epsilon between two values of alphas_cumprod.

    Raises ValueError if `now` is 0, where x and epsilon are the same and tell nothing of the image.
    """
    if not now.all():
        raise ValueError(
            "the checkpoint's time steps begin in pure noise (rescale_betas_zero_snr), where this "
            "solver divides by zero: use solver='ddim' or another one"
        )
    a = np.sqrt(after / now)
    return a, np.sqrt(1 - after) - a * np.sqrt(1 - now)

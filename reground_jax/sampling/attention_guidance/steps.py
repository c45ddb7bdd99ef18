"""The numbers of each step for each method, on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from reground_jax.attention_guidance import (
    LMD,
    AttentionGuidance,
    AttentionRefocusing,
    BoxDiff,
    LayoutGuidance,
)
from reground_jax.basics.short_repr import short_repr
from reground_jax.sampling.attention_guidance import boxdiff
from reground_jax.sampling.solvers.plan import Plan

ROUNDING = 1e-9  # .1 + .2 of ten steps are three


class Steps(NamedTuple):
    """The numbers of each step [N], or of one step (scalars). Each method reads some of them."""

    most: Int[Array | np.ndarray, "*N"]  # updates at most
    size: Float[Array | np.ndarray, "*N"]  # of an update, times the gradient of the loss
    scale: Float[Array | np.ndarray, "*N"]  # multiplies the loss
    early: Bool[Array | np.ndarray, "*N"]
    enough: Float[Array | np.ndarray, "*N"]  # what ends the updates of a sample
    close: Float[Array | np.ndarray, "*N"]
    refine_most: Int[Array | np.ndarray, "*N"]
    refine_target: Float[Array | np.ndarray, "*N"]
    edge: Float[Array | np.ndarray, "*N"]  # of BoxDiff's smoothing
    background: Float[Array | np.ndarray, "*N"]  # LMD's weight of what is outside

    __repr__ = short_repr


def steps_of(method: AttentionGuidance, plan: Plan) -> Steps:
    """The numbers of each step of a plan, on the host."""
    first = np.asarray(plan.first)
    alpha, sigma = (np.asarray(part)[first] for part in (plan.alpha, plan.sigma))
    count = len(alpha)
    variance = sigma**2 / (alpha**2 + sigma**2)  # 1 - alphas_cumprod
    made = dict.fromkeys(Steps._fields, np.zeros(count))
    match method:
        case BoxDiff():
            at = np.arange(count)
            made |= {
                "most": at < _step(method.until, count),
                "size": method.strength * np.sqrt(np.linspace(1, 0.5, count)),
                "edge": np.full(count, boxdiff.edge_weight(method.sigma)),
            }
            for fraction, threshold in method.thresholds if method.refine else ():
                made["refine_most"] = np.where(
                    at == _step(fraction, count), method.most, made["refine_most"]
                )
                made["refine_target"] = np.where(
                    at == _step(fraction, count), 1 - threshold, made["refine_target"]
                )
        case AttentionRefocusing():
            scale, most = _refocusing_schedule(method, count)
            early, first_steps = (
                np.arange(count) < _step(f, count) for f in (method.early, method.first)
            )
            made |= {
                "most": most, "size": np.ones(count), "scale": method.strength * scale,
                "early": early, "enough": np.full(count, method.enough),
                "close": np.where(first_steps, method.close, -np.inf),
            }  # fmt: skip
        case LayoutGuidance():
            made |= {
                "most": np.where(np.arange(count) < _step(method.until, count), method.most, 0),
                "size": method.strength * variance,
                "enough": np.full(count, method.threshold),
            }
        case LMD():
            made |= {
                "most": _pieces([(until, most) for until, most in method.schedule], count),
                "size": method.strength * np.sqrt(variance),
                "enough": np.full(count, method.threshold),
                "background": np.full(count, method.background),
            }
    kinds = {"most": np.int32, "refine_most": np.int32, "early": bool}
    return Steps(**{name: own.astype(kinds.get(name, np.float32)) for name, own in made.items()})


def _step(fraction: float, count: int) -> int:
    return int(fraction * count + ROUNDING)


def _pieces(pieces: Sequence[tuple[float, float]], count: int) -> np.ndarray:
    """The value of the first piece that ends after each step; 0 after the last."""
    at = np.arange(count)
    ends = [_step(until, count) for until, _ in pieces]
    values = [value for _, value in pieces]
    return np.select([at < end for end in ends], values, 0)


def _refocusing_schedule(method: AttentionRefocusing, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(scale of the loss, updates at most) at each step."""
    scale = _pieces([(until, scale) for until, scale, _, _ in method.schedule], count)
    most = _pieces([(until, most) for until, _, most, _ in method.schedule], count)
    every = _pieces([(until, every) for until, _, _, every in method.schedule], count)
    period = np.maximum(1, (every * count + ROUNDING).astype(int))
    return scale, np.where(np.arange(count) % period == 0, most, 0)

"""How the paper compares the wirings: shares of a swing over gamma, and preference."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from reground_jax.evaluation.scorer import TradeOff
from reground_jax.evaluation.statistics import Weights
from reground_jax.evaluation.studies.conditions import ENDS, Condition

Row = dict[str, Any]
Values = Mapping[str, np.ndarray]
SWING = 0.1  # the paper's smaller gamma


def shares(
    values: Mapping[Condition, Values], trade_off: TradeOff
) -> list[tuple[Row, dict[str, np.ndarray]]]:
    """What the parallel wiring gains and loses, as shares of the sequential one's swing over gamma.

    "gain" is of the trade-off's second metric, "loss" of its first, both in each resample: from the
    sequential wiring at the largest gamma, how far the parallel wiring moves, over how far the
    sequential one does at gamma SWING or, without it, the smallest one above 0 ("swing_to").
    """
    found = []
    for condition in values:
        model, cases = condition.model, condition.cases
        sequential = {
            c.gamma: c for c in values if (c.model, c.cases, c.method) == (model, cases, ENDS[0])
        }
        smaller = [gamma for gamma in sequential if 0 < gamma < condition.gamma]
        if condition.method != ENDS[1] or condition.gamma not in sequential or not smaller:
            continue
        if condition.gamma < max(sequential):
            continue
        to = SWING if SWING in smaller else min(smaller)
        here, start, end = (values[c] for c in (condition, sequential[condition.gamma],
                                                sequential[to]))  # fmt: skip
        ratios = {
            name: _ratio(here[axis] - start[axis], end[axis] - start[axis])
            for name, axis in (("gain", trade_off.y.metric), ("loss", trade_off.x.metric))
        }
        found.append(({**vars(condition), "swing_to": to}, ratios))
    return found


def _ratio(part: Float[np.ndarray, "R"], whole: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole != 0)


def preference(
    liked: Float[np.ndarray, "N"], other: Float[np.ndarray, "N"], weights: Weights
) -> dict[str, Float[np.ndarray, "R"]]:
    """How much the first of each pair of images is preferred, in each resample.

    "preference" is the mean of sigmoid(liked - other), "wins" the share of pairs in which the first
    is liked more, a tie being half a win.
    """
    chance = 1 / (1 + np.exp(other - liked))
    wins = (liked > other) + 0.5 * (liked == other)
    total = weights.sum(1)
    return {"preference": weights @ chance / total, "wins": weights @ wins / total}

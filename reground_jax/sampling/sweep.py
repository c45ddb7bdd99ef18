"""Many schedules from one start, running the steps that they share only once.

Runs with the same seed are identical until their schedules differ, such as where the smaller gamma
turns its fusers off, so they form a tree: for gamma 0, 0.1 .. 1 it has 6.5 N steps, where separate
runs have 11 N.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int

from reground_jax.config import UNetConfig
from reground_jax.sampling.coupling import amount_table
from reground_jax.sampling.gate import gate_table, grounded_steps
from reground_jax.sampling.solvers.plan import State
from reground_jax.settings import Settings


class Schedule(NamedTuple):
    """What a run does at each of its steps."""

    gates: Float32[np.ndarray, "n"]
    amounts: Float32[np.ndarray, "n d 3"] | None  # of the wiring `coupled`
    grounded_steps: int

    @classmethod
    def of(cls, settings: Settings, config: UNetConfig) -> "Schedule":
        """Raises ValueError for settings that do not fit the model."""
        gates, amounts = (
            gate_table(settings.gamma, settings.num_steps),
            amount_table(settings, config),
        )
        grounded = grounded_steps(gates)
        if amounts is not None:
            amounts[grounded:, :, :2] = 0  # nothing reads them, so steps may be shared
        return cls(gates, amounts, grounded)

    def row(self, step: int) -> bytes:
        """Equal for two schedules that do the same at a step."""
        grounded = step < self.grounded_steps
        amounts = b"" if self.amounts is None else self.amounts[step].tobytes()
        return bytes([grounded]) + self.gates[step].tobytes() + amounts


# (state, schedule, start, stop) -> state after steps start..stop-1; may reuse `state`'s memory
Advance = Callable[[State, Schedule, int, int], State]


def branch(state: State, schedules: Sequence[Schedule], advance: Advance) -> list[State]:
    """The final state under each schedule, all starting from `state`."""
    rows = numbered(schedules)
    finals: dict[int, State] = {}
    # Branching points: a state, the runs of each branch still to go, and the step.
    waiting: list[tuple[State, list[list[int]], int]] = [(state, [list(range(len(rows)))], 0)]
    while waiting:
        state, (runs, *others), start = waiting.pop()
        if others:
            waiting.append((state, others, start))
            state = jax.tree.map(jnp.copy, state)
        stop = start + _common(rows[runs, start:])
        if stop > start:
            state = advance(state, schedules[runs[0]], start, stop)
        if stop == rows.shape[1]:
            finals |= dict.fromkeys(runs, state)
        else:
            waiting.append((state, _split(runs, rows[:, stop]), stop))
    return [finals[run] for run in range(len(rows))]


def num_steps(schedules: Sequence[Schedule]) -> int:
    """How many steps `branch` runs: the number of distinct prefixes of the schedules."""
    rows = numbered(schedules)
    return len({row[: end + 1].tobytes() for row in rows for end in range(len(row))})


def numbered(schedules: Sequence[Schedule]) -> Int[np.ndarray, "k n"]:
    """A number for what each schedule does at each step; the same number for the same."""
    seen: dict[bytes, int] = {}
    return np.array(
        [
            [seen.setdefault(schedule.row(step), len(seen)) for step in range(len(schedule.gates))]
            for schedule in schedules
        ]
    )


def _common(rows: Int[np.ndarray, "k n"]) -> int:
    """The length of the prefix that all share."""
    differ = np.flatnonzero((rows != rows[0]).any(0))
    return int(differ[0]) if differ.size else rows.shape[1]


def _split(runs: Sequence[int], rows: Int[np.ndarray, "k"]) -> list[list[int]]:
    """`runs` grouped by what they do at one step."""
    return [[run for run in runs if rows[run] == row] for row in np.unique(rows[runs])]

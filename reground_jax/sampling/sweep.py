"""Many gate tables from one start: steps that several of them have in common are run once.

Runs of different gammas with the same seed are equal until the smaller gamma switches its fusers
off, so they are a tree: for gamma 0, 0.1 .. 1 it has 6.5 N steps where single runs have 11 N.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from reground_jax.sampling.solvers.plan import State

# (state, gates, start, stop) -> state after the steps start..stop-1; may take over its memory
Advance = Callable[[State, Float32[np.ndarray, "n"], int, int], State]


def branch(state: State, tables: Float32[np.ndarray, "k n"], advance: Advance) -> list[State]:
    """The final state under each of `tables` (sampling/gate.py), all from `state`."""
    finals: dict[int, State] = {}
    # Branching points: a state, the rows of each branch that is still to be run, and the step.
    waiting: list[tuple[State, list[list[int]], int]] = [(state, [list(range(len(tables)))], 0)]
    while waiting:
        state, (rows, *others), start = waiting.pop()
        if others:
            waiting.append((state, others, start))
            state = jax.tree.map(jnp.copy, state)
        stop = start + _common(tables[rows, start:])
        if stop > start:
            state = advance(state, tables[rows[0]], start, stop)
        if stop == tables.shape[1]:
            finals |= dict.fromkeys(rows, state)
        else:
            waiting.append((state, _split(rows, tables[:, stop]), stop))
    return [finals[row] for row in range(len(tables))]


def num_steps(tables: Float32[np.ndarray, "k n"]) -> int:
    """How many steps `branch` runs: the distinct beginnings of the tables."""
    return len({row[: end + 1].tobytes() for row in tables for end in range(len(row))})


def _common(tables: Float32[np.ndarray, "k n"]) -> int:
    """How many first steps all tables have in common."""
    differ = np.flatnonzero((tables != tables[0]).any(0))
    return int(differ[0]) if differ.size else tables.shape[1]


def _split(rows: Sequence[int], gates: Float32[np.ndarray, "k"]) -> list[list[int]]:
    """`rows` by their gate at one step, the lowest first."""
    return [[row for row in rows if gates[row] == gate] for gate in np.unique(gates[rows])]

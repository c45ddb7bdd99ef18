"""Many gate tables from one start, running the steps that they share only once.

Runs with the same seed are identical until the smaller gamma turns its fusers off, so they form a
tree: for gamma 0, 0.1 .. 1 it has 6.5 N steps, where separate runs have 11 N.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from reground_jax.sampling.solvers.plan import State

# (state, gates, start, stop) -> state after steps start..stop-1; may reuse the memory of `state`
Advance = Callable[[State, Float32[np.ndarray, "n"], int, int], State]


def branch(state: State, tables: Float32[np.ndarray, "k n"], advance: Advance) -> list[State]:
    """The final state under each of `tables` (sampling/gate.py), all starting from `state`."""
    finals: dict[int, State] = {}
    # Branching points: a state, the rows of each branch still to run, and the step.
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
    """How many steps `branch` runs: the number of distinct prefixes of the tables."""
    return len({row[: end + 1].tobytes() for row in tables for end in range(len(row))})


def _common(tables: Float32[np.ndarray, "k n"]) -> int:
    """The length of the prefix that all tables share."""
    differ = np.flatnonzero((tables != tables[0]).any(0))
    return int(differ[0]) if differ.size else tables.shape[1]


def _split(rows: Sequence[int], gates: Float32[np.ndarray, "k"]) -> list[list[int]]:
    """`rows` grouped by their gate at one step, lowest first."""
    return [[row for row in rows if gates[row] == gate] for gate in np.unique(gates[rows])]

"""The amounts of the wiring `coupled` as a table: one row per step and transformer block."""

import numpy as np
from jaxtyping import Float32

from reground_jax.amounts import Amount, Piece, pieces
from reground_jax.basics.fields import check_name
from reground_jax.config import UNetConfig
from reground_jax.settings import AMOUNTS, Settings

ROUNDING = 1e-9  # .1 + .2 of ten steps are three


def amount_table(settings: Settings, config: UNetConfig) -> Float32[np.ndarray, "n d 3"] | None:
    """Coupling, grounding weight and text weight of every block at every step, on the host.

    None for another wiring than `coupled`. Blocks are in order of execution. Raises ValueError for
    a place that the model does not have, and for two names of the same block.
    """
    if settings.wiring != "coupled":
        return None
    columns = [_column(name, settings, config) for name in AMOUNTS]
    return np.stack(columns, axis=-1).astype(np.float32)


def block_places(config: UNetConfig) -> list[tuple[str, str]]:
    """(part, side of the feature map in the model's own size) of every block, as text."""
    return [
        (level.part, str(-(-config.sample_size // 2**level.depth)))
        for level in config.levels()
        for _ in range(level.attentions * level.transformer_layers)
    ]


def _column(name: str, settings: Settings, config: UNetConfig) -> np.ndarray:
    """[n, d] of one amount."""
    amount: Amount = getattr(settings, name)
    rows, done, begin = [], 0.0, 0
    for fraction, own in pieces(amount):
        done += fraction
        end = int(done * settings.num_steps + ROUNDING)
        rows += [_row(name, own, config)] * (end - begin)
        begin = end
    rows += rows[-1:] * (settings.num_steps - len(rows))
    return np.array(rows)


def _row(name: str, own: Piece, config: UNetConfig) -> list[float]:
    """[d] at one step."""
    places = block_places(config)
    if not isinstance(own, tuple):
        return [own] * len(places)
    known = list(dict.fromkeys([*(part for part, _ in places), *(side for _, side in places)]))
    for place, _ in own:
        check_name(f"place of {name}", place, known)
    row = []
    for place in places:
        values = [value for key, value in own if key in place]
        if len(values) > 1:
            raise ValueError(
                f"{name} names some blocks twice, by {place[0]!r} and by {place[1]!r}: give parts "
                "of the U-Net, or sides of its levels"
            )
        row.append(values[0] if values else 1.0)
    return row

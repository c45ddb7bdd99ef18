"""What the page's fields ask for: one layout, its columns as `Settings`, a seed and a model."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reground_jax.attention_guidance import guidance_text
from reground_jax.layout import Layout
from reground_jax.settings import AMOUNTS, Settings, checked_seeds

# The columns that can be compared, by the name on the page.
PLAIN = {
    "Stable Diffusion": "no_grounding",
    "GLIGEN": "sequential",
    "ReGround": "parallel",
}
COUPLED, GUIDED = "Coupled", "Attention guidance"
COLUMNS = (*PLAIN, COUPLED, GUIDED)
UNDER = (*PLAIN, COUPLED)  # what attention guidance can be added to
DEFAULT_COLUMNS = tuple(PLAIN)
COUPLING = 0.5
METHOD = "boxdiff"
# Settings that have a field on the page, apart from those that a column decides.
SHOWN = ("gamma", "num_steps", "guidance_scale", "solver")
DECIDED = ("wiring", "attention_guidance", "coupling")


@dataclass(frozen=True)
class Choice:
    """The columns as the page has them."""

    columns: tuple[str, ...] = DEFAULT_COLUMNS
    coupling: float = COUPLING
    method: str = METHOD  # of attention guidance, as on the command line
    under: str = "ReGround"  # what the guidance is added to

    def methods(self) -> dict[str, str]:
        """By the name of the column, its method as `compare --columns` has it."""
        wirings = PLAIN | {COUPLED: f"coupled:{self.coupling!r}"}
        all_methods = wirings | {GUIDED: f"{self.method.strip()}+{wirings[self.under]}"}
        return {name: all_methods[name] for name in COLUMNS if name in self.columns}


@dataclass(frozen=True)
class Order:
    """A checked request: the pictures of one layout and seed, by the name of their column."""

    model: str
    layout: Layout
    columns: dict[str, Settings]
    seed: int

    @property
    def settings(self) -> Settings:
        """Those of the first column, which differ from the others' in `DECIDED` only."""
        return next(iter(self.columns.values()))


def checked_order(model: str, layout: Layout, base: Settings, choice: Choice, seed: Any) -> Order:
    """Raises ValueError, in words for the page, for what is missing or does not fit."""
    if not choice.columns:
        raise ValueError("no column is chosen: tick at least one under “Columns”")
    if GUIDED in choice.columns and not choice.method.strip():
        raise ValueError("no method of attention guidance is chosen: choose one, such as boxdiff")
    if not (layout.prompt.strip() or layout.boxes):
        raise ValueError("there is no prompt and no box: write a prompt, or draw a box")
    (number,) = checked_seeds([seed])
    plain = base_settings(base)
    columns = {name: plain.with_method(method) for name, method in choice.methods().items()}
    return Order(model, layout, columns, number)


def base_settings(settings: Settings) -> Settings:
    """Without what a column decides. Weights of attentions stay, for the column Coupled."""
    weights = {name: getattr(settings, name) for name in AMOUNTS if name != "coupling"}
    plain = {"wiring": "coupled", "coupling": 1.0, "attention_guidance": None}
    return dataclasses.replace(settings, **plain, **weights)


def choice_of(settings: Settings) -> Choice:
    """The one column that these settings are. Raises ValueError if the page has none for them."""
    by_wiring = {wiring: name for name, wiring in PLAIN.items()} | {"coupled": COUPLED}
    under = by_wiring.get(settings.wiring)
    if under is None:
        raise ValueError(f"the wiring {settings.wiring!r} is no column of this page")
    coupling = settings.coupling if settings.wiring == "coupled" else COUPLING
    if not isinstance(coupling, int | float) or not 0 <= coupling <= 1:
        raise ValueError("its coupling is not one number from 0 to 1, as on this page's slider")
    if settings.attention_guidance is None:
        return Choice((under,), float(coupling))
    method = guidance_text(settings.attention_guidance)
    return Choice((GUIDED,), float(coupling), method, under)


def hidden_settings(settings: Settings, recommended: Settings) -> Sequence[str]:
    """What differs from the recommended settings and has no field on the page, in words."""
    changed = settings.diff(recommended)
    return [
        f"{name} {value}" for name, (value, _) in changed.items() if name not in (*SHOWN, *DECIDED)
    ]

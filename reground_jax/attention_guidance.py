"""Attention guidance as people ask for it: a method and its numbers. Nothing here imports JAX.

Before a step, each method moves the latents along the gradient of a loss on the attention maps, so
that things appear in their boxes; sampling/attention_guidance/ has the losses. Defaults are those
of the methods' own code for 50 steps, as fractions of the steps.

    None                                        no guidance
    BoxDiff()
    {"method": "boxdiff", "refine": true}       as JSON
    boxdiff, boxdiff:refine=1,strength=10       on a command line
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, no_type_check

from reground_jax.basics.fields import as_float, as_int, check_name
from reground_jax.basics.options import read_number
from reground_jax.basics.wording import shown

Missing = Literal["error", "skip"]
MISSING = ("error", "skip")
MAX_UPDATES = 100  # of a step


@no_type_check  # they are checked below
@dataclass(frozen=True)
class AttentionGuidance:
    """What all methods have.

    missing  what to do with a phrase that is not in the prompt: "error", or "skip", which leaves
             its box grounded but not guided
    """

    missing: Missing = dataclasses.field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        check_name("missing", self.missing, MISSING)
        for field in dataclasses.fields(self):
            if field.name != "missing":
                own = f"{field.name} of {name_of(self)}"
                value = _like(own, getattr(self, field.name), field.default)
                object.__setattr__(self, field.name, value)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of `attention_guidance`."""
        values = {name: _plain(value) for name, value in vars(self).items()}
        return {"method": name_of(self), **values}


@no_type_check
@dataclass(frozen=True)
class BoxDiff(AttentionGuidance):
    """BoxDiff (arXiv 2307.10816).

    strength    of an update at the first step; its square falls to half at the last step
    until       fraction of the steps with updates, one each
    share       of a box's cells, and of those outside, that count
    reach       cells around an edge that count in the corner terms
    sigma       of the smoothing of the maps
    refine      whether some steps repeat updates of the inner term until it is small
    thresholds  for `refine`: (fraction of the steps, threshold), where a step's inner term should
                fall to 1 - threshold
    most        updates of a refined step
    """

    strength: float = 20.0
    until: float = 0.5
    share: float = 0.2
    reach: int = 1
    sigma: float = 0.5
    refine: bool = False
    thresholds: tuple[tuple[float, float], ...] = ((0.0, 0.05), (0.2, 0.5), (0.4, 0.8))
    most: int = 20


@no_type_check
@dataclass(frozen=True)
class AttentionRefocusing(AttentionGuidance):
    """Attention-Refocusing (arXiv 2306.05427).

    strength  multiplies the loss
    schedule  pieces (until which fraction of the steps, scale of the loss, updates of a step at
              most, one such step every so large a fraction of the steps, or 0 for all)
    early     fraction of the steps in which all terms count, and the fusers' attention
    enough    a step's updates end when every box has a cell with this score ...
    close     ... or, in the first `first` of the steps, when the loss is this small
    """

    strength: float = 1.0
    schedule: tuple[tuple[float, float, int, float], ...] = (
        (0.04, 4.0, 2, 0.0), (0.1, 4.0, 6, 0.0), (0.2, 3.0, 3, 0.0), (0.4, 3.0, 2, 0.1),
        (0.7, 1.0, 2, 0.1),
    )  # fmt: skip
    early: float = 0.3
    enough: float = 0.2
    close: float = 0.1
    first: float = 0.2


@no_type_check
@dataclass(frozen=True)
class LayoutGuidance(AttentionGuidance):
    """Layout guidance, also known as backward guidance (arXiv 2304.03373).

    strength   of an update, times the step's noise variance
    until      fraction of the steps with updates
    most       updates of a step
    threshold  a sample whose loss is as small as this is not guided any more
    """

    strength: float = 30.0
    until: float = 0.2
    most: int = 5
    threshold: float = 0.2


@no_type_check
@dataclass(frozen=True)
class LMD(AttentionGuidance):
    """The guidance of LLM-grounded Diffusion's stage 2 (arXiv 2305.13655).

    strength    of an update, times the step's noise level
    schedule    pieces (until which fraction of the steps, updates of a step at most)
    threshold   a sample whose loss is as small as this is not guided any more
    share       of an object's cells, and of those outside, that count
    background  weight of what is outside
    """

    strength: float = 5.0
    schedule: tuple[tuple[float, int], ...] = ((0.1, 4), (0.2, 3), (0.4, 2), (0.6, 1))
    threshold: float = 5.0
    share: float = 0.2
    background: float = 4.0


METHODS: dict[str, type[AttentionGuidance]] = {
    "boxdiff": BoxDiff,
    "attention_refocusing": AttentionRefocusing,
    "layout_guidance": LayoutGuidance,
    "lmd": LMD,
}
FRACTIONS = ("until", "share", "early", "enough", "first")


def name_of(method: AttentionGuidance) -> str:
    return next(name for name, kind in METHODS.items() if kind is type(method))


def attention_guidance(value: Any) -> AttentionGuidance | None:
    """A method from its name, its text, its JSON form or itself. Raises ValueError."""
    if value is None or isinstance(value, AttentionGuidance):
        return value
    if isinstance(value, str):
        name, _, rest = value.partition(":")
        pairs = (part.partition("=") for part in rest.split(",") if part)
        value = {"method": name} | {field.strip(): read_number(text) for field, _, text in pairs}
    if not isinstance(value, dict) or "method" not in value:
        raise ValueError(
            f"attention_guidance is {shown(value)}: give the name of a method, such as 'boxdiff', "
            "or a method, such as BoxDiff(strength=10)"
        )
    fields = dict(value)
    name = fields.pop("method")
    check_name("attention guidance", name, METHODS)
    known = [field.name for field in dataclasses.fields(METHODS[name])]
    for field in fields:
        check_name(f"number of {name}", field, known)
    return METHODS[name](**fields)


def guidance_text(method: AttentionGuidance) -> str:
    """As a command line has it: the name, and the numbers that are not the method's own."""
    own = type(method)()
    changed = [
        f"{name}={int(value) if isinstance(value, bool) else value}"
        for name, value in vars(method).items()
        if value != getattr(own, name)
    ]
    return name_of(method) + (f":{','.join(changed)}" if changed else "")


def _like(name: str, value: Any, default: Any) -> Any:
    """`value` with the form of a default. Raises ValueError."""
    if isinstance(default, bool):
        if value not in (0, 1):
            raise ValueError(f"{name} is {shown(value)}: give true or false")
        return bool(value)
    if isinstance(default, tuple):
        return _rows(name, value, default)
    rule = "give a number of at least 0"
    if isinstance(default, int):
        count = as_int(name, value)
        if not 0 <= count <= MAX_UPDATES:
            raise ValueError(f"{name} is {count}: give a whole number from 0 to {MAX_UPDATES}")
        return count
    number = as_float(name, value, rule)
    if number < 0:
        raise ValueError(f"{name} is {shown(value)}: {rule}")
    if name.split()[0] in FRACTIONS and number > 1:
        raise ValueError(f"{name} is {shown(value)}: give a fraction from 0 to 1")
    return number


def _rows(name: str, value: Any, default: tuple) -> tuple:
    """Rows of numbers like those of the default, whose first numbers are fractions in order."""
    width = len(default[0])
    rows = list(value) if isinstance(value, (list, tuple)) else []
    if not rows or any(not isinstance(row, (list, tuple)) or len(row) != width for row in rows):
        raise ValueError(f"{name} is {shown(value)}: give rows of {width} numbers")
    made = tuple(
        tuple(_like(name, own, like) for own, like in zip(row, default[0], strict=True))
        for row in rows
    )
    firsts = [row[0] for row in made]
    if firsts != sorted(firsts) or firsts[-1] > 1:
        raise ValueError(f"{name} is {shown(value)}: its fractions must rise, and end by 1")
    return made


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value

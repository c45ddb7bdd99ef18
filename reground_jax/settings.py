"""`Settings`: how an image is generated, as one frozen value that round-trips through JSON.

What to generate (prompt, phrases, boxes) is a `Layout`, in layout.py. Nothing here imports JAX, so
a command line can check its arguments before it loads anything.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, no_type_check

from reground_jax.amounts import Amount, amount_json, checked_amount, read_amount
from reground_jax.attention_guidance import METHODS, AttentionGuidance, attention_guidance
from reground_jax.basics.fields import as_float, as_int, check_name
from reground_jax.basics.options import NUMBERS, option, read_gamma, read_number, read_numbers
from reground_jax.basics.wording import shown

# How a transformer block combines gated self-attention and cross-attention (see
# networks/transformer.py).
Wiring = Literal["sequential", "parallel", "no_text", "no_grounding", "text_first", "coupled"]
WIRINGS: tuple[Wiring, ...] = get_args(Wiring)
# The names of the methods that use them.
WIRING_ALIASES: dict[str, Wiring] = {
    "reground": "parallel",
    "gligen": "sequential",
    "sd": "no_grounding",
}
# Each is the file of that name in sampling/solvers.
SOLVER_NAMES = (
    "plms", "pndm", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde", "unipc", "euler",
    "euler_ancestral", "lcm",
)  # fmt: skip
AMOUNTS = ("coupling", "grounding_weight", "text_weight")  # what only "coupled" reads
ETA_SOLVERS = ("ddim",)  # those that add as much noise as eta says
DTYPES = ("float32", "bfloat16")

MAX_STEPS = 1000  # the number of time steps that Stable Diffusion was trained with
# Far more than Stable Diffusion models can handle, yet small enough that a recipe in an untrusted
# file cannot request more memory than any machine has.
MAX_SIDE = 8192
MAX_SEED = 2**32 - 1  # seeds are uint32
MAX_BOXES = 1024
SIZE_MULTIPLE = 8  # of Stable Diffusion's VAE; `Programs.latent_shape` checks the checkpoint's own
GAMMA_TOLERANCE = 1e-6  # .7 + .2 + .1 is not 1 in floating point


@no_type_check  # the checks and messages below must run before the tests' type checker
@dataclass(frozen=True)
class Settings:
    """The settings of a generation. Every field is checked; a bad one raises ValueError.

    wiring          one of WIRINGS: "parallel" is ReGround, "sequential" is GLIGEN. "reground",
                    "gligen" and "sd" (plain Stable Diffusion) are accepted as aliases
    coupling        for wiring="coupled": how much of what grounding adds the attention to the text
                    sees, from 0 ("parallel") to 1 ("sequential"), or beyond. A number; numbers by
                    place, {"down": 1, "mid": 0} or {"64": 0} by side of a level in the model's own
                    size, others 1; or [[fraction of the steps, one of these], ...]
    grounding_weight, text_weight  the same for what multiplies the results of attention to the
                    boxes and to the text
    attention_guidance  None, or a method that moves things into their boxes by the attention maps
                    of the prompt's words (attention_guidance.py): a value such as BoxDiff(), or its
                    name
    gamma           fraction 0..1 of the steps, from the first on, with grounding on, or GLIGEN's
                    three parts (on, decay, off), which add up to 1
                    (`gligen_scheduled_sampling_beta`, tau)
    num_steps       denoising steps, 1..1000
    guidance_scale  classifier-free guidance, at least 0; 1 skips the unconditional branch
    guidance_interval  guidance only in the steps from int(start * n) up to int(stop * n); other
                    steps cost half as much. Approximate unless it is (0, 1) (arXiv 2404.07724);
                    must contain at least one step
    solver          one of SOLVER_NAMES. "lcm" is for models distilled for it: 4 to 8 steps, and
                    guidance_scale 1 to 2
    eta             noise of DDIM, 0..1; 0 for every other solver
    height, width   of the image in pixels, multiples of 8 up to 8192; None takes the model's own
    dtype           compute dtype, one of DTYPES; jnp.bfloat16 and NumPy dtypes are accepted.
                    None: the dtype that the pipeline was loaded with
    max_boxes       grounding tokens G per image, 1..1024. Unused ones are learned null tokens that
                    take part in attention, so changing it changes the image; trained with 30
    paste           for inpainting: outside the boxes, put back the source's own pixels, which the
                    autoencoder changes slightly; the borders of boxes may then show
    """

    wiring: Wiring = option(
        "parallel",
        "how attention to the boxes and attention to the prompt are combined: parallel (ReGround), "
        "sequential (GLIGEN), coupled (between the two, see --coupling) or, for comparison, "
        "no_grounding (Stable Diffusion), no_text or text_first",
        "NAME",
    )
    coupling: Amount = option(
        1.0,
        "for --wiring coupled: how much of what grounding adds the attention to the text sees, "
        "from 0 (parallel) to 1 (sequential). By part of the U-Net, down=1,mid=0,up=0, or side of "
        "its levels, 64=0,32=1; by fraction of the steps, 0.3:1/0.7:0",
        "C",
        read=read_amount,
    )
    grounding_weight: Amount = option(
        1.0,
        "for --wiring coupled: multiplies what attention to the boxes adds; a number, or as for "
        "--coupling",
        "W",
        read=read_amount,
    )
    text_weight: Amount = option(
        1.0,
        "for --wiring coupled: multiplies what attention to the text adds; a number, or as for "
        "--coupling",
        "W",
        read=read_amount,
    )
    attention_guidance: AttentionGuidance | None = option(
        None,
        "before each step, move things toward their boxes by the attention maps of the prompt's "
        f"words: {', '.join(METHODS)}; numbers of a method follow it, as in boxdiff:strength=10. "
        "Every phrase must be part of the prompt; missing=skip does not guide the others",
        "METHOD",
    )
    gamma: float | tuple[float, float, float] = option(
        1.0,
        "fraction 0..1 of the steps, counted from the first, in which the boxes are used (called "
        "gamma by ReGround, tau by GLIGEN); lower values give the prompt more influence. Or "
        "GLIGEN's three parts ON/DECAY/OFF, which add up to 1",
        "G",
        read=read_gamma,
        aliases=("--tau", "--beta", "--gligen-scheduled-sampling-beta"),
    )
    num_steps: int = option(
        50,
        "denoising steps, 1 to 1000",
        "N",
        read=read_number,
        name="--steps",
        aliases=("--num-steps", "--num-inference-steps"),
    )
    guidance_scale: float = option(
        7.5,
        "how strongly the image follows the text (classifier-free guidance); 1 turns guidance "
        "off, which takes half the time",
        "S",
        read=read_number,
        aliases=("--cfg", "--cfg-scale", "--guidance", "--scale"),
    )
    guidance_interval: tuple[float, float] = option(
        (0.0, 1.0),
        "approximate: use guidance only in this part of the steps, such as 0,0.5; the other steps "
        "take half the time",
        "START,STOP",
        read=read_numbers,
        words=NUMBERS,
    )
    solver: str = option(
        "plms",
        "sampler: plms (GLIGEN's multistep method), "
        f"{', '.join(SOLVER_NAMES[1:-1])} or {SOLVER_NAMES[-1]}",
        "NAME",
        aliases=("--sampler", "--scheduler"),
    )
    eta: float = option(
        0.0, "how much noise the ddim solver adds at each step, 0..1", "E", read=read_number
    )
    height: int | None = option(
        None, "height of the image, a multiple of 8", "PIXELS", read=read_number
    )
    width: int | None = option(
        None, "width of the image, a multiple of 8", "PIXELS", read=read_number
    )
    dtype: str | None = option(
        None,
        "compute precision: float32, or bfloat16, which takes half the memory and is faster on GPU "
        "and TPU",
        "NAME",
        group="hardware",
    )
    max_boxes: int = option(
        30,
        "maximum number of boxes; models are trained with 30, and changing it changes the image",
        "N",
        read=read_number,
    )
    paste: bool = option(
        False,
        "for inpainting: put back the source's own pixels outside the boxes, which the model's "
        "autoencoder changes slightly",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "wiring", wiring_name(self.wiring))
        check_name("solver", self.solver, SOLVER_NAMES)
        if self.dtype is not None:
            object.__setattr__(self, "dtype", dtype_name(self.dtype))
        for name in AMOUNTS:
            object.__setattr__(self, name, checked_amount(name, getattr(self, name)))
            if self.wiring != "coupled" and getattr(self, name) != 1:
                raise ValueError(
                    f"{name} is {shown(amount_json(getattr(self, name)))}, but the wiring is "
                    f"{self.wiring!r}: only wiring='coupled' reads it"
                )
        guidance = attention_guidance(self.attention_guidance)
        object.__setattr__(self, "attention_guidance", guidance)
        if guidance is not None and self.wiring == "no_text":
            raise ValueError(
                "attention guidance reads the attention to the text, which wiring 'no_text' does "
                "not have: use another wiring, or attention_guidance=None"
            )
        object.__setattr__(self, "gamma", checked_gamma(self.gamma))
        object.__setattr__(self, "num_steps", _count("num_steps", self.num_steps, MAX_STEPS))
        object.__setattr__(self, "max_boxes", _count("max_boxes", self.max_boxes, MAX_BOXES))
        object.__setattr__(self, "guidance_scale", _guidance_scale(self.guidance_scale))
        interval = _interval(self.guidance_interval)
        object.__setattr__(self, "guidance_interval", interval)
        if self.guidance_scale != 1 and not guided_steps(interval, self.num_steps):
            raise ValueError(
                f"guidance_interval is {list(interval)}, which contains none of the "
                f"{self.num_steps} steps: make it longer, or set guidance_scale=1 for no guidance"
            )
        object.__setattr__(self, "eta", _eta(self.eta, self.solver))
        if not isinstance(self.paste, bool):
            raise ValueError(f"paste is {shown(self.paste)}: it must be true or false")
        for side in ("height", "width"):
            if (pixels := getattr(self, side)) is not None:
                object.__setattr__(self, side, _size(side, pixels))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values by field name; `from_json` returns an equal Settings."""
        fields = dataclasses.asdict(self)
        special: dict[str, Any] = {name: amount_json(fields[name]) for name in AMOUNTS}
        guidance = self.attention_guidance
        special["attention_guidance"] = None if guidance is None else guidance.to_json()
        return {n: list(v) if isinstance(v, tuple) else v for n, v in fields.items()} | special

    @classmethod
    def from_json(cls, value: Any) -> "Settings":
        """Inverse of `to_json`; absent fields take their defaults. Raises ValueError."""
        if not isinstance(value, dict):
            raise ValueError(f"settings are {value!r}: expected a JSON object of settings fields")
        fields = tuple(field.name for field in dataclasses.fields(cls))
        for name in value:
            check_name("settings field", name, fields)
        return cls(**value)

    def with_method(self, method: str) -> "Settings":
        """With the wiring of this name, or "coupled:0.25" for a coupling of its own.

        "boxdiff+parallel" has attention guidance, too. A wiring that reads no amounts has them at
        their defaults. Raises ValueError.
        """
        guidance, _, rest = method.rpartition("+")
        wiring, _, coupling = rest.partition(":")
        fields: dict[str, Any] = {"coupling": read_amount(coupling)} if coupling else {}
        if guidance:
            fields["attention_guidance"] = guidance
        if wiring_name(wiring) != "coupled":
            fields = dict.fromkeys(AMOUNTS, 1.0) | fields
        return dataclasses.replace(self, wiring=wiring, **fields)

    def diff(self, other: "Settings") -> dict[str, tuple[Any, Any]]:
        """The fields that differ: name -> (value here, value in `other`)."""
        mine, theirs = self.to_json(), other.to_json()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


def guided_steps(interval: tuple[float, float], num_steps: int) -> range:
    """The steps, out of `num_steps`, in which both guidance branches are evaluated."""
    start, stop = (int(end * num_steps) for end in interval)
    return range(start, stop)


def wiring_name(value: object) -> Wiring:
    """One of WIRINGS, from its name or an alias. Raises ValueError."""
    if isinstance(value, str) and value.lower() in WIRING_ALIASES:
        return WIRING_ALIASES[value.lower()]
    check_name("wiring", value, WIRINGS)
    return value  # type: ignore[return-value]


def dtype_name(value: object) -> str:
    """One of DTYPES, from its name or from a JAX or NumPy dtype. Raises ValueError."""
    name = value if isinstance(value, str) else None
    for attribute in ("name", "__name__"):  # of np.dtype; of np.float32, jnp.bfloat16
        name = name or getattr(value, attribute, None)
    check_name("dtype", name or value, DTYPES)
    return str(name)


def _count(name: str, value: object, limit: int) -> int:
    rule = f"give a whole number from 1 to {limit}"
    count = as_int(name, value, rule)
    if not 1 <= count <= limit:
        raise ValueError(f"{name} is {count}: {rule}")
    return count


def _size(name: str, value: object) -> int:
    rule = f"image sides are multiples of {SIZE_MULTIPLE} pixels"
    pixels = as_int(name, value, rule)
    if pixels > MAX_SIDE:
        raise ValueError(f"{name} is {pixels}: image sides are at most {MAX_SIDE} pixels")
    if pixels < SIZE_MULTIPLE or pixels % SIZE_MULTIPLE:
        below = pixels // SIZE_MULTIPLE * SIZE_MULTIPLE
        nearest = [str(n) for n in (below, below + SIZE_MULTIPLE) if n >= SIZE_MULTIPLE]
        raise ValueError(f"{name} is {pixels}: {rule}; try {' or '.join(nearest) or SIZE_MULTIPLE}")
    return pixels


def _parts(value: object) -> object:
    """A list or tuple, or a NumPy or JAX array, as a list; anything else unchanged."""
    if hasattr(value, "tolist"):
        return value.tolist()  # type: ignore[attr-defined]
    return list(value) if isinstance(value, (list, tuple)) else value


def _guidance_scale(value: object) -> float:
    rule = "give a finite number, at least 0 (1 turns guidance off)"
    scale = as_float("guidance_scale", value, rule)
    if scale < 0:
        raise ValueError(f"guidance_scale is {scale}: {rule}")
    return scale


def _interval(value: object) -> tuple[float, float]:
    rule = "give two fractions, 0 <= start < stop <= 1 (guidance_scale=1 turns guidance off)"
    value = _parts(value)
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"guidance_interval is {shown(value)}: {rule}")
    start, stop = (as_float(f"an end of guidance_interval {value}", end, rule) for end in value)
    if not 0 <= start < stop <= 1:
        raise ValueError(f"guidance_interval is {value}: {rule}")
    return start, stop


def _eta(value: object, solver: str) -> float:
    rule = "give a number in 0..1 (0 is deterministic, 1 adds as much noise as DDPM)"
    eta = as_float("eta", value, rule)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}: {rule}")
    if eta and solver not in ETA_SOLVERS:
        takers = " or ".join(map(repr, ETA_SOLVERS))
        raise ValueError(f"eta is {eta}, but only solver {takers} takes eta: use it, or set eta=0")
    return eta


def checked_seeds(seeds: Any) -> list[int]:
    """Seeds of images as Python integers.

    Raises ValueError unless this is an array or an iterable of integers from 0 to MAX_SEED.
    """
    rule = f"a seed is an integer from 0 to {MAX_SEED}, one per image"
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise ValueError(f"seeds is {shown(seeds)}: {rule}; give a list")
    # An array is read at once: each item of a JAX array would be an array on the device.
    given: list[Any] = getattr(seeds, "tolist", lambda: list(seeds))()
    checked = []
    for number, seed in enumerate(given, 1):
        name = "seed" if len(given) == 1 else f"seed {number} of {len(given)}"
        checked.append(as_int(name, seed, rule))
        if not 0 <= checked[-1] <= MAX_SEED:
            raise ValueError(f"{name} is {shown(seed)}: {rule}")
    return checked


def checked_gamma(value: object) -> float | tuple[float, float, float]:
    """A fraction of the steps in 0..1, or three parts (on, decay, off) that add up to 1.

    Returns Python floats. Raises ValueError for anything else.
    """
    rule = "give a fraction of the steps in 0..1, or three parts (on, decay, off) that add up to 1"
    value = _parts(value)
    if not isinstance(value, list):
        gamma = as_float("gamma", value, rule)
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}: {rule}")
        return gamma
    if len(value) != 3:
        raise ValueError(f"gamma is {shown(value)}, which has {len(value)} parts: {rule}")
    on, decay, off = (as_float(f"a part of gamma {value}", part, rule) for part in value)
    if min(on, decay, off) < 0:
        raise ValueError(f"gamma is {value}, which has a negative part: {rule}")
    if abs(on + decay + off - 1) > GAMMA_TOLERANCE:
        raise ValueError(f"gamma is {value}, which adds up to {on + decay + off:g}: {rule}")
    return on, decay, off

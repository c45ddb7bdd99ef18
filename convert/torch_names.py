"""The names that honest checkpoints hold, each by its exact module and name, and what they may do.

Trainers put more into a checkpoint than arrays: numbers of NumPy, Lightning's callbacks,
OmegaConf's configs. Their names stay names and their objects inert data. Nothing is imported, so
that a name on these lists does no harm even if its function would; still, each may only do what its
honest use takes: be a value, be a class of objects, or be called.
"""

from collections.abc import Callable
from typing import Any

from .pickle_data import Inert, Name

# Python 2 called the module `__builtin__`, and had `long`; pickle protocol 2 still writes both.
BUILTINS = "dict list tuple set frozenset int long float complex bool str bytes bytearray".split()
DTYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 "
    "float8_e4m3fn float8_e5m2 uint16 uint32 uint64"
).split()
CALLBACKS = (
    "model_checkpoint.ModelCheckpoint",
    "early_stopping.EarlyStopping",
    "lr_monitor.LearningRateMonitor",
    "timer.Timer",
    "finetuning.BaseFinetuning",
    "finetuning.BackboneFinetuning",
    "stochastic_weight_avg.StochasticWeightAveraging",
    "gradient_accumulation_scheduler.GradientAccumulationScheduler",
)
LIGHTNING = ("pytorch_lightning", "lightning.pytorch")
NUMPY = ("numpy.core", "numpy._core")  # before and since NumPy 2

VALUES = frozenset(
    {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in BUILTINS}
    | {f"{package}.callbacks.{name}" for package in LIGHTNING for name in CALLBACKS}
    | {f"torch.{name}" for name in DTYPES}
    | {"numpy.ndarray", "typing.Any", "torch.Tensor", "torch.nn.parameter.Parameter"}
)
CLASSES = frozenset(
    {
        "argparse.Namespace",
        "torch.nn.modules.container.ParameterDict",
        "torch.nn.modules.container.ParameterList",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        *(f"{package}.utilities.parsing.AttributeDict" for package in LIGHTNING),
    }
)
CALLED = frozenset(
    {f"{package}.multiarray.{name}" for package in NUMPY for name in ("scalar", "_reconstruct")}
    | {f"{package}.numeric._frombuffer" for package in NUMPY}
    | {f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath")}
    | {"numpy.dtype", "torch.device", "torch.Size", "collections.Counter", "_codecs.encode"}
    | {"builtins.bytes", "__builtin__.bytes", "builtins.bytearray", "__builtin__.bytearray"}
)
DICTS = frozenset({"collections.OrderedDict", "collections.defaultdict"})
SETS = frozenset({f"{m}.{n}" for m in ("builtins", "__builtin__") for n in ("set", "frozenset")})


def known(module: str, name: str) -> Name | None:
    """The name with what it may do; None if no honest checkpoint needs it.

    Torch's storages and tensors are not here: see `pickles`.
    """
    full = f"{module}.{name}"
    if "." in name:  # a way through an object to what it holds
        return None
    if full in DICTS:
        return Name(full, call=_dict)
    if full in SETS:
        return Name(full, call=_first)
    if full in CALLED:
        return Name(full, call=_inert(full))
    if full in CLASSES or (module.startswith("omegaconf.") and _is_path(full)):
        return Name(full, creates=True)  # OmegaConf has many node classes; as data all are alike
    return Name(full) if full in VALUES else None


def _is_path(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _inert(name: str) -> Callable[[tuple[Any, ...]], Inert]:
    return lambda arguments: Inert(name)


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """An empty dict, to which items are given next; a defaultdict's factory means nothing here."""
    if len(arguments) > 1 or (arguments and type(arguments[0]) is not Name):
        raise ValueError("a dict is called with its items")
    return {}


def _first(arguments: tuple[Any, ...]) -> Any:
    """A set, as the list it is made of."""
    return arguments[0] if arguments and type(arguments[0]) is list else []

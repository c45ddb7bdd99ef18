"""The names allowed in checkpoints, by exact module and name, and what each may be used for.

Trainers store more than arrays in a checkpoint: NumPy scalars, Lightning callbacks, OmegaConf
configs. Their names stay names, and their objects become inert data. Nothing is imported, so a name
on these lists is harmless even if its function is not; still, each may only be used as legitimate
checkpoints use it: as a value, as a class to instantiate, or as a function to call.
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
    """The name and its allowed uses, or None if no legitimate checkpoint needs it.

    Torch's storages and tensors are in `pickles`.
    """
    full = f"{module}.{name}"
    if "." in name:  # reaches through an object to its attributes
        return None
    if full in DICTS:
        return Name(full, call=_dict)
    if full in SETS:
        return Name(full, call=_first)
    if full in CALLED:
        return Name(full, call=_inert(full))
    if full in CLASSES or (module.startswith("omegaconf.") and _is_path(full)):
        return Name(full, creates=True)  # OmegaConf has many node classes, all alike as data
    return Name(full) if full in VALUES else None


def _is_path(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _inert(name: str) -> Callable[[tuple[Any, ...]], Inert]:
    return lambda arguments: Inert(name)


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """An empty dict, whose items follow later; a defaultdict's factory is ignored."""
    if len(arguments) > 1 or (arguments and type(arguments[0]) is not Name):
        raise ValueError("a dict is constructed with items")
    return {}


def _first(arguments: tuple[Any, ...]) -> Any:
    """A set, as the list of its elements."""
    return arguments[0] if arguments and type(arguments[0]) is list else []

"""Torch checkpoints whose pickle would run code, never end, or fill the memory."""

import struct

from . import CANARY, READS, Case
from .parts import (
    PROTO,
    call,
    name,
    program,
    storage,
    tensor,
    text,
    torch_zip,
    value,
)

PYTHON = f"open({CANARY!r}, 'w')"
SHELL = f"touch {CANARY}"
# What a malicious checkpoint would call, and with what.
CALLS = (
    ("os", "system", SHELL),
    ("posix", "system", SHELL),
    ("nt", "system", SHELL),
    ("os", "popen", SHELL),
    ("os", "mkdir", CANARY),
    ("posix", "mkdir", CANARY),
    ("subprocess", "Popen", ["touch", CANARY]),
    ("subprocess", "check_output", ["touch", CANARY]),
    ("pty", "spawn", ["touch", CANARY]),
    ("builtins", "eval", PYTHON),
    ("__builtin__", "eval", PYTHON),
    ("builtins", "exec", PYTHON),
    ("builtins", "compile", PYTHON, "x", "exec"),
    ("builtins", "open", CANARY, "w"),
    ("_io", "open", CANARY, "w"),
    ("io", "FileIO", CANARY, "w"),
    ("builtins", "__import__", "this"),
    ("builtins", "getattr", "x", "upper"),
    ("__builtin__", "apply", "x"),
    ("builtins", "print", "x"),
    ("builtins", "type", "x", (), {}),
    ("builtins", "map", "x", "y"),
    ("builtins", "input"),
    ("builtins", "breakpoint"),
    ("importlib", "import_module", "this"),
    ("runpy", "run_path", "x.py"),
    ("pickle", "loads", b""),
    ("copyreg", "_reconstructor", "x", "y", "z"),
    ("copyreg", "add_extension", "os", "system", 1),
    ("functools", "partial", "x"),
    ("functools", "reduce", "x", "y"),
    ("operator", "attrgetter", "system"),
    ("operator", "methodcaller", "system", SHELL),
    ("types", "FunctionType", "x"),
    ("types", "CodeType", 0),
    ("codecs", "decode", "x", "rot13"),
    ("_codecs", "decode", "x", "rot13"),
    ("timeit", "timeit", PYTHON),
    ("cProfile", "run", PYTHON),
    ("pdb", "run", PYTHON),
    ("code", "interact"),
    ("shutil", "rmtree", "x"),
    ("pathlib", "Path", CANARY),
    ("webbrowser", "open", "http://localhost"),
    ("urllib.request", "urlopen", "http://localhost"),
    ("socket", "create_connection", ("localhost", 9)),
    ("ctypes", "CDLL", "libc.so.6"),
    ("sys", "exit", 0),
    ("os", "_exit", 0),
    ("signal", "raise_signal", 9),
    ("threading", "Thread"),
    ("collections", "namedtuple", "x", PYTHON),
    ("typing", "get_type_hints", "x"),
    ("argparse", "FileType", "w"),
    ("pip._internal", "main", ["--version"]),
    ("torch", "load", "x"),
    ("torch", "save", {}, CANARY),
    ("torch.hub", "load", "x", "y"),
    ("torch.jit", "load", "x"),
    ("torch.utils.cpp_extension", "load", "x", []),
    ("torch._utils", "_import_dotted_name", "os.system"),
    ("torch.storage", "_load_from_bytes", b""),
    ("torch.nn.modules.container", "Sequential"),
    ("torch.optim.adam", "Adam", []),
    ("torch.package", "PackageImporter", "x"),
    ("numpy", "load", "x"),
    ("numpy", "save", CANARY, 0),
    ("numpy", "fromfile", "x"),
    ("numpy", "memmap", CANARY, "float64", "w+", 0, (2,)),
    ("numpy", "seterrcall", "x"),
    ("numpy.lib.npyio", "load", "x"),
    ("numpy.core.multiarray", "fromfile", "x"),
    ("numpy._core.multiarray", "set_typeDict", {}),
    ("numpy.testing._private.utils", "runstring", PYTHON, {}),
    ("numpy.testing", "measure", PYTHON),
    ("numpy.distutils.exec_command", "exec_command", SHELL),
    ("pytorch_lightning", "Trainer"),
    ("pytorch_lightning.utilities.cloud_io", "load", "x"),
    ("pytorch_lightning.callbacks.lambda_function", "LambdaCallback"),
    ("lightning.pytorch.cli", "LightningCLI"),
)
# Allowed names, beyond their legitimate use.
CHECKPOINT = name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
MISUSES = {
    "reduce-inert-class": (CHECKPOINT, value((1,)), b"R"),
    "new-inert-class": (CHECKPOINT, value(()), b"\x81"),
    "new-ex-inert-class": (CHECKPOINT, value(()), value({}), b"\x92"),
    "build-inert-class": (CHECKPOINT, value({"a": 1}), b"b"),
    "reduce-ndarray": (name("numpy", "ndarray"), value(((2,),)), b"R"),
    "build-ndarray": (name("numpy", "ndarray"), value({"a": 1}), b"b"),
    "new-dtype": (name("numpy", "dtype"), value(()), b"\x81"),
    "build-scalar-function": (name("numpy.core.multiarray", "scalar"), value({"a": 1}), b"b"),
    "reduce-storage": (name("torch", "FloatStorage"), value((3,)), b"R"),
    "build-storage": (storage(), value({"offset": 0}), b"b"),
    "build-tensor": (tensor(), value({"path": "/etc/passwd"}), b"b"),
    "build-list": (value([]), value({"a": 1}), b"b"),
    "reduce-text": (value("os.system"), value((SHELL,)), b"R"),
    "reduce-tensor": (tensor(), value(()), b"R"),
    "reduce-int-class": (name("builtins", "int"), value(("9",)), b"R"),
    "reduce-list-class": (name("__builtin__", "list"), value(([],)), b"R"),
    "reduce-omegaconf": (name("omegaconf.dictconfig", "DictConfig"), value(()), b"R"),
    "reduce-namespace": (name("argparse", "Namespace"), value(()), b"R"),
    "new-of-a-dict": (value({}), value(()), b"\x81"),
}
# Names that begin like an allowed one, or reach through it.
NEAR = (
    ("collections", "abc.sys.modules"),
    ("collections", "OrderedDict.fromkeys"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch._utils", "_rebuild_tensor_v2x"),
    ("torch", "FloatStorage.from_file"),
    ("torch", "UntypedStorage"),
    ("numpy", "dtype.__class__"),
    ("numpy.core.multiarray", "scalar.__self__"),
    ("numpy.core", "multiarray.fromfile"),
    ("numpy.core.multiarray.scalar", "x"),
    ("pytorch_lightning.callbacks.model_checkpoint", "os.system"),
    ("pytorch_lightning.callbacks.model_checkpoint", "os"),
    ("pytorch_lightning.callbacks", "ModelCheckpoint.__init__"),
    ("omegaconfx", "DictConfig"),
    ("omegaconf.dictconfig", "os.system"),
    ("omegaconf.dictconfig", "Dict\x1b[2JConfig"),
    ("omegaconf", "OmegaConf"),
    ("pathlib", "PosixPath.touch"),
    ("builtins", "dict.__subclasses__"),
    ("", ""),
)


def stack_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def doubled(start: bytes, times: int, opening: bytes, closing: bytes) -> bytes:
    """A value that holds `start` 2**times times: a few bytes for each doubling."""
    turn = b"0" + opening + b"h\x00h\x00" + closing + b"q\x00"
    return start + b"q\x00" + turn * times


def original(config: bytes) -> bytes:
    """An original GLIGEN checkpoint, empty but for its config."""
    parts = {part: {} for part in ("model", "text_encoder", "autoencoder", "diffusion")}
    return torch_zip(program({**parts, "config_dict": config}))


TUPLES = doubled(value(()), 40, b"", b"\x86")
LISTS = doubled(b"]", 40, b"](", b"e")
DICTS = doubled(b"}", 40, b"}" + text("a"), b"0s" + text("b") + b"h\x00s")
ITSELF = b"]q\x00h\x00a"


def _colliding(count: int) -> bytes:
    """A dict of ints that all have the same hash: setting each compares it with all before it."""
    prime = 2**61 - 1
    return b"}(" + b"".join(value(n * prime) + b"N" for n in range(1, count)) + b"u"


TYPED, TENSOR = name("torch._tensor", "_rebuild_from_type_v2"), name("torch", "Tensor")
NESTED = b")" + b"\x85" * 5000
NODE = name("omegaconf.nodes", "AnyNode") + b")\x81"  # without its state


# Endless work, by what it would be for Python's own unpickler.
ENDLESS = {
    "tuples-as-key": (program(TUPLES + b"0}h\x00Ns"), "a dict with the key"),
    "tuples-in-set": (program(b"\x8f(" + TUPLES + b"\x90"), "holds a list"),
    "tuples-in-frozenset": (program(b"(" + TUPLES + b"\x91"), "holds a list"),
    "tuples-as-persistent-id": (program(TUPLES + b"Q"), "damaged .*is not a torch storage"),
    "tuples-as-shape": (program({"a": tensor(shape=TUPLES)}), "damaged .*a tensor at 0 of shape"),
    "tuples-as-array": (program({"a": TUPLES}), "'a' is a tuple"),
    "tuples-as-name": (program(TUPLES + text("x") + b"\x93"), "damaged .*a name of"),
    "tuples-called": (program(TUPLES + b")R"), "calls .*could run code"),
    "lists-as-array": (program({"a": LISTS}), "'a' is a list"),
    "lists-as-key": (program(LISTS + b"0}h\x00Ns"), "a dict with the key"),
    "lists-as-arguments": (program(name("torch", "Size") + LISTS + b"R"), "damaged .*called with"),
    "key-of-many-bytes": (program({"k" * 2**17: tensor()}), "a dict with the key"),
    "int-of-many-bytes": (program(b"\x8b" + struct.pack("<L", 2**20) + bytes(2**20)), "damaged"),
    "ints-that-collide": (program(_colliding(30_000)), "a dict with the key 2"),
    "memo-at-2-to-28": (program({"a": tensor()}, b"r" + struct.pack("<L", 2**28)), READS),
    "memo-at-2-to-32": (program({"a": tensor()}, b"r" + struct.pack("<L", 2**32 - 1)), READS),
    "lists-without-end": (PROTO + b"]" * 3_100_000, "more than 3000000 instructions"),
    "dicts-kept": (PROTO + b"}\x94" * 1_600_000, "more than 3000000 instructions"),
    "marks-without-end": (PROTO + b"(" * 3_100_000, "more than 3000000 instructions"),
    "frames-without-end": (PROTO + (b"\x95" + bytes(8)) * 3_100_000, "more than 3000000"),
    "nested-lists": (program({"a": b"]" * 200_000 + b"a" * 199_999}), "'a' is a list"),
    "nested-tuples": (program({"a": b")" + b"\x85" * 200_000}), "'a' is a tuple"),
    "nested-parameters": (
        program({"a": call("torch._utils", "_rebuild_parameter", NESTED)}),
        "damaged .*a parameter of",
    ),
    "nested-typed-tensors": (
        program({"a": call("torch._tensor", "_rebuild_from_type_v2", TYPED, TENSOR, NESTED, {})}),
        "damaged .*a tensor of type",
    ),
    "text-of-2-to-63": (program(b"\x8d" + struct.pack("<Q", 2**63)), "damaged .*ends early"),
    "text-of-2-to-32": (program(b"X\xff\xff\xff\xffx"), "damaged .*ends early"),
    "bytes-of-2-to-62": (program(b"\x8e" + struct.pack("<Q", 2**62)), "damaged .*ends early"),
    "bytearray-of-2-to-62": (program(b"\x96" + struct.pack("<Q", 2**62)), "damaged .*ends early"),
    "long-of-2-to-31": (program(b"\x8b" + struct.pack("<L", 2**31 - 1)), "damaged .*a number of"),
    "frame-of-2-to-63": (program(b"\x95" + struct.pack("<Q", 2**63), {"a": tensor()}), READS),
    "name-without-end": (program(b"c" + b"x" * 100_000), "damaged .*an unterminated name"),
    "name-of-many-letters": (program(stack_name("x" * 10_000, "y")), "damaged .*a name of"),
}  # fmt: skip
DAMAGED = {
    "nothing": b"",
    "stop-alone": b".",
    "protocol-alone": PROTO,
    "no-stop": PROTO + b"}",
    "unknown-instruction": program(b"\xff"),
    "instance-instruction": program(b"(ios\nsystem\n"),
    "object-instruction": program(b"(" + name("os", "system")[:0] + b"o"),
    "extension": program(b"\x82\x01"),
    "out-of-band": program(b"\x97"),
    "protocol-0": b"(dp0\nVa\np1\nI1\ns.",
    "text-persistent-id": program(b"P0\n"),
    "value-never-kept": program(b"h\x07"),
    "pop-of-nothing": program(b"0"),
    "tuple-of-nothing": program(b"\x87"),
    "append-to-nothing": program(b"Na"),
    "append-to-number": program(b"K\x01Na"),
    "append-to-tuple": program(b")Na"),
    "items-without-mark": program(b"}u"),
    "items-odd": program(b"}(Nu"),
    "items-of-list": program(b"](NNu"),
    "bad-utf8": program(b"X\x02\x00\x00\x00\xc3\x28"),
    "bad-utf8-name": program(b"c\xff\n\xff\n"),
    "arguments-no-tuple": program(name("torch", "Size") + b"NR"),
    "names-no-texts": program(b"NN\x93"),
    "dict-of-items": program(call("collections", "OrderedDict", [("a", 1)])),
    "dict-of-two": program(call("collections", "defaultdict", name("builtins", "list"), 1)),
    "parameter-of-text": program({"a": call("torch._utils", "_rebuild_parameter", "x")}),
    "parameter-of-nothing": program({"a": call("torch._utils", "_rebuild_parameter")}),
    "tensor-of-nothing": program({"a": call("torch._utils", "_rebuild_tensor_v2")}),
    "tensor-of-list": program({"a": tensor(stored=value([]))}),
    "tensor-from-minus-1": program({"a": tensor(start=-1)}),
    "tensor-from-text": program({"a": tensor(start="0")}),
    "shape-minus-1": program({"a": tensor(shape=(-1, 3))}),
    "shape-true": program({"a": tensor(shape=(True, 3))}),
    "shape-float": program({"a": tensor(shape=(2.0, 3))}),
    "shape-list": program({"a": tensor(shape=[2, 3])}),
    "shape-2-to-64": program({"a": tensor(shape=(2**64, 0))}),
    "shape-0-and-much": program({"a": tensor(shape=(0, 2**58, 2**58), strides=(1, 1, 1))}),
    "shape-of-1000": program({"a": tensor(shape=(1,) * 1000, strides=(1,) * 1000)}),
    "strides-minus": program({"a": tensor(start=5, strides=(-3, -1))}),
    "strides-fewer": program({"a": tensor(strides=(1,))}),
    "strides-2-to-64": program({"a": tensor(shape=(0, 3), strides=(2**64, 1))}),
    "storage-minus-1": program({"a": tensor(stored=storage(numel=-1))}),
    "storage-true": program({"a": tensor(stored=storage(numel=True))}),
    "storage-float": program({"a": tensor(stored=storage(numel=6.0))}),
    "storage-of-text": program({"a": tensor(stored=storage(kind=text("torch.FloatStorage")))}),
    "storage-of-dtype": program({"a": tensor(stored=storage(kind=name("torch", "float32")))}),
    "storage-of-list": program({"a": tensor(stored=storage(kind=b"]"))}),
    "storage-key-number": program({"a": tensor(stored=storage(key=0))}),
    "storage-of-three": program({"a": tensor(stored=value(("storage", 1, 2)) + b"Q")}),
    "module-by-id": program({"a": tensor(stored=value(("module", 1, 2, 3, 4)) + b"Q")}),
}
ARRAYS = {
    "tensor-beyond": (tensor(start=1), "reaches beyond its storage of 6"),
    "tensor-far-beyond": (tensor(start=2**50), "reaches beyond its storage of 6"),
    "tensor-strides-beyond": (tensor(strides=(2**40, 1)), "reaches beyond its storage of 6"),
    "tensor-repeats": (tensor(shape=(10**7, 10**7), strides=(0, 0)), "repeats the 6 elements"),
    "tensor-repeats-row": (tensor(shape=(10**9, 6), strides=(0, 1)), "repeats the 6 elements"),
    "tensor-repeats-little": (tensor(shape=(4, 5), strides=(0, 1)), READS),
    "storage-longer": (tensor(stored=storage(numel=7)), "data/0 needs 28 bytes, found 24"),
    "storage-much-longer": (tensor(stored=storage(numel=2**58)), "data/0 needs .* found 24"),
    "storage-shorter": (tensor(stored=storage(numel=5)), "reaches beyond its storage of 5"),
    "storage-missing": (tensor(stored=storage("1")), "has no storage '1'"),
    "storage-elsewhere": (tensor(stored=storage("../../../etc/passwd")), "has no storage"),
    "storage-absolute": (tensor(stored=storage("/etc/passwd")), "has no storage"),
    "storage-long-key": (tensor(stored=storage("0" * 10**6)), "has no storage"),
    "storage-is-pickle": (tensor(stored=storage("../data.pkl")), "has no storage"),
    "array-is-number": (b"K\x01", "'a' is a int, but a state dict"),
    "array-is-name": (name("torch", "float32"), r"'a' is a torch\.float32"),
    "array-is-set": (call("builtins", "set", [1]), "'a' is a list"),
    "array-is-storage": (storage(), "'a' is a _Storage"),
}
KEYED = {
    "key-int": value(3),
    "key-bytes": b"C\x01a",
    "key-none": b"N",
    "key-true": b"\x88",
    "key-name": name("torch", "float32"),
    "key-object": call("numpy", "dtype", "f4"),
    "key-long": text("k" * 1000),
    "key-lines": text("a\nb"),
    "key-escape": text("a\x1b[2J"),
    "key-surrogate": text("a\ud83d"),
    "key-nul": text("a\0"),
}
CONFIGS = {
    "config-list": (b"]", "its config is a list, not a dict"),
    "config-none": (b"N", "its config is a NoneType, not a dict"),
    "config-lists": (LISTS, "its config is too large"),
    "config-tuples": (TUPLES, "its config is too large"),
    "config-dicts": (DICTS, "its config is too large"),
    "config-in-itself": (value({"a": ITSELF}), "its config is too large"),
    "config-nested": (value({"a": b"]" * 5000 + b"a" * 4999}), "its config is too large"),
    "config-lists-inside": (value({"a": LISTS}), "its config is too large"),
    "config-wide": (value({"a": [0] * 100_001}), "its config is too large"),
    "config-tuple-key": (b"})Ns", "a dict with the key"),
    "config-int-key": (value({3: 4}), "config has the field 3"),
    "config-long-key": (value({"k" * 1000: 4}), "config has the field 'kkk"),
    "config-object": (
        NODE + value({"x": 1}) + b"b",
        "config holds a AnyNode with neither",
    ),
    "config-object-inside": (
        value({"a": NODE + value({"x": 1}) + b"b"}),
        "config holds a AnyNode with neither",
    ),
    "config-node-in-itself": (
        value({"a": NODE + b"q\x05}" + text("_val") + b"h\x05sb"}),
        "its config is too large",
    ),
    "config-array": (value({"a": tensor()}), "config holds StoredArray"),
    "config-long-text": (value({"a": "x" * 10_000}), "config has a string of 10000 characters"),
}  # fmt: skip


def cases() -> list[Case]:
    found = []
    for module, attribute, *arguments in CALLS:
        pickle = program({"a": call(module, attribute, *arguments)})
        says = rf"refers to {module}\.{attribute}, which could run code"
        found.append(Case(f"{module}.{attribute}.pt", torch_zip(pickle), says, "RefusedPickle"))
    for module, attribute in NEAR:
        content = torch_zip(program({"a": stack_name(module, attribute) + b")R"}))
        label = f"near-{len(found)}.pt"
        found.append(Case(label, content, "refers to .*which could run code", "RefusedPickle"))
    for label, instructions in MISUSES.items():
        content = torch_zip(program({"a": b"".join(instructions)}))
        says = "(calls|creates an instance of|sets the state of) .*, which could run code"
        found.append(Case(f"{label}.pt", content, says, "RefusedPickle"))
    for label, (pickle, says) in ENDLESS.items():
        found.append(Case(f"{label}.pt", torch_zip(pickle), says))
    for label, pickle in DAMAGED.items():
        says = "its pickle is damaged"
        found.append(Case(f"{label}.pt", torch_zip(pickle), says, "BadPickle"))
    for label, (array, says) in ARRAYS.items():
        found.append(Case(f"{label}.pt", torch_zip(program({"a": array})), says))
    for label, key in KEYED.items():
        pickle = program(b"}" + key + tensor() + b"s")
        found.append(Case(f"{label}.pt", torch_zip(pickle), "has an array named"))
    for label, (config, says) in CONFIGS.items():
        found.append(Case(f"{label}.pt", original(config), says, opener="open_original"))
    return found

"""The code stays in order: what may import what, how long things are, and what is documented.

Everything is read from the source; nothing is imported. If a rule stands in the way of something
better, change it here, or add an exception with its reason.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The floors of ARCHITECTURE.md. A room, which is a file or folder of reground_jax, or convert,
# imports only from its own floor or those below it, both at the top of a file and in functions.
FLOORS = (
    # plain Python
    "basics version",
    # the request and its pictures
    "kinds amounts attention_guidance settings hints pictures keypoints "
    "layout layout_fields layout_kinds images draw panel readers",
    # functions of arrays
    "clip_config unet_config config counter devices networks regions",
    # models and sampling
    "storage model words packing conditioning sampling",
    # other people's checkpoints
    "convert",
    # from layouts to images
    "hardware programs session request generate pipeline __init__",
    # what is done with that
    "app batch bench evaluation maps",
    # the built-in world
    "emoji",
    "training",
    # commands
    "cli demo",
)
# Allowed imports from above, with the reason.
UPWARDS = {
    ("emoji", "training"): "the trainer trains the emoji world's probes, and trains on that world",
}
# Rooms that may import less than their floor allows.
ONLY = {
    "networks": "config kinds settings basics",  # no files, no devices
    "__init__": "layout settings attention_guidance version basics draw images model pipeline "
    "programs session",
}
# Packages that only these rooms may import at the top of a file; any room may in functions.
JAX = " ".join(FLOORS[2:-1]).replace("__init__", "")
AT_THE_TOP = {
    "jax": JAX,  # so that a request is checked before JAX is imported
    "flax": JAX,
    "optax": "training",  # the extra [train]
    **dict.fromkeys(("gradio", "gradio_image_annotation"), "app"),  # the extra [app]
    "tokenizers": "conditioning storage convert emoji",
    "huggingface_hub": "",  # imported only by those who use the Hub
    "reground_jax.convert": "convert evaluation",  # of scorers' networks
    "orbax": "",  # slow to import
    **dict.fromkeys(("torch", "diffusers", "transformers", "accelerate"), ""),  # for comparison
    **dict.fromkeys(("fsspec", "ray", "datasets", "resvg_py"), ""),  # extras
    **dict.fromkeys(("cv2", "controlnet_aux"), ""),  # for maps of photographs
    **dict.fromkeys(("fcntl", "resource", "pwd", "termios"), ""),  # Windows has none of them
}
# Packages that only one room may import at all.
ALONE = {"orbax": "storage", "huggingface_hub": "convert", "optax": "training", "gradio": "app"}

LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines
# Files and functions that are longer, with the reason.
LONGER = {
    "unet_macs": "one walk through the U-Net, level by level",
    "write_model": "a third of it is its docstring",
}
# Rooms in which every public name must be documented.
PUBLIC = (
    "__init__ layout layout_kinds pictures settings images draw conditioning devices sampling"
).split()


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """(path, syntax tree) of every Python file of the project in `folders`."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def room_of(module: str) -> str:
    """ "reground_jax.sampling.gate" -> "sampling"; other packages by their own name."""
    package, _, rest = module.partition(".")
    return (rest.partition(".")[0] or "__init__") if package == "reground_jax" else package


def imports(path: str, tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported at the top) for each import of a file."""
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(function, ast.If) and "TYPE_CHECKING" in ast.unparse(function.test))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif not isinstance(node, ast.ImportFrom):
            continue
        elif node.level:  # only convert/ has these
            modules = ["reground_jax.convert"]
        elif node.module == "reground_jax":  # imports a file, or a name in the package
            files = {file.stem for file in (ROOT / "reground_jax").iterdir()}
            modules = [
                f"reground_jax.{name.name}" if name.name in files else "reground_jax"
                for name in node.names
            ]
        else:
            modules = [str(node.module)]
        for module in modules:
            yield module, node not in inside


def all_imports() -> Iterator[tuple[str, str, str, bool]]:
    """(path, room, imported module, whether at the top) for each import."""
    for path, tree in sources("reground_jax", "convert"):
        parts = path.removesuffix(".py").removeprefix("reground_jax/").split("/")
        for module, at_the_top in imports(path, tree):
            yield path, parts[0], module, at_the_top


def test_every_room_has_a_floor_and_imports_nothing_from_above():
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
    wrong = []
    for path, room, module, _ in all_imports():
        if not module.startswith("reground_jax"):
            continue
        target = room_of(module)
        allowed = ONLY.get(room, target).split()
        lost = {room, target} - floor_of.keys()
        above = not lost and floor_of[target] > floor_of[room] and (room, target) not in UPWARDS
        if lost or above or target not in (room, *allowed):
            wrong.append(f"{path} imports {module}" + (f", and {lost} has no floor" * bool(lost)))
    assert not wrong, "\n".join(wrong)


def test_packages_are_imported_at_the_top_only_where_they_may():
    wrong = []
    for path, room, module, at_the_top in all_imports():
        package = ".".join(module.split(".")[: 2 if module.startswith("reground_jax.c") else 1])
        if at_the_top and room not in AT_THE_TOP.get(package, room).split():
            wrong.append(f"{path} imports {module} at the top")
        if room not in ALONE.get(package, room).split():
            wrong.append(f"{path} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_every_package_is_in_the_wheel_with_its_types():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = (path.parent for path in (ROOT / "reground_jax").rglob("__init__.py"))
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(setup["packages"]) == found | {"reground_jax.convert"}
    assert "py.typed" in setup["package-data"]["reground_jax"]
    assert (ROOT / "reground_jax" / "py.typed").exists()


def test_files_and_functions_are_short():
    wrong = []
    for path, tree in sources("reground_jax", "convert", "benchmarks", "tests", "examples"):
        lines = len((ROOT / path).read_text("utf-8").splitlines())
        if lines > LONGEST_FILE and path not in LONGER:
            wrong.append(f"{path} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name not in LONGER:
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    wrong.append(f"{path}: {node.name} has {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_every_file_and_public_name_has_a_docstring():
    wrong = []
    for path, tree in sources("reground_jax", "convert", "benchmarks", "tests", "examples"):
        if tree.body and not ast.get_docstring(tree):
            wrong.append(path)
        room = path.removesuffix(".py").removeprefix("reground_jax/").split("/")[0]
        if not path.startswith("reground_jax/") or room not in PUBLIC:
            continue
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in (*tree.body, *(part for owner in classes for part in owner.body)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                if not ast.get_docstring(node):
                    wrong.append(f"{path}: {node.name}")
    assert not wrong, "\n".join(wrong)


def test_no_file_uses_private_names_of_another():
    wrong = []
    for path, tree in sources("reground_jax", "convert", "benchmarks", "examples"):
        used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        own = {node.attr for node in used if ast.unparse(node.value) in ("self", "cls", "argparse")}
        own |= {"_replace", "_asdict", "_fields"}  # methods of NamedTuple
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                owner, names = ast.unparse(node.value), {node.attr} - own
            elif isinstance(node, ast.ImportFrom):
                owner, names = str(node.module), {name.name for name in node.names}
            else:
                continue
            private = [n for n in names if n.startswith("_") and not n.startswith("__")]
            wrong += [f"{path} uses {owner}.{name}" for name in private]
    assert not wrong, "\n".join(wrong)

"""FID's InceptionV3 with random weights, and what torch-fidelity's module makes of images with it.

That package cannot be among the requirements, since it requires torchvision; its module of this
network does not. `data/inception.npz` has the names and shapes of the arrays, and the features:

    pip install --no-deps torch-fidelity==0.4.0
    python -m tests.inception_reference
"""

import importlib
import json
import sys
import tempfile
import types
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests.fixtures import DATA

FILE = DATA / "inception.npz"
AVAILABLE = find_spec("torch_fidelity") is not None


def state(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Random arrays, each by its name alone; activations keep their size through the network."""
    return {name: torch.from_numpy(_values(name, tuple(shape))) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(7)
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    values = random.standard_normal(shape)
    if len(shape) > 1:
        values *= (2 / np.prod(shape[1:])) ** 0.5
    else:
        values *= 0.2
        values += name.endswith("bn.weight")
    return values.astype(np.float32)


def images() -> np.ndarray:
    """uint8 [2, 512, 512, 3] with large and small detail."""
    random = np.random.RandomState(1)
    coarse = np.kron(random.randint(0, 200, (2, 32, 32, 3)), np.ones((1, 16, 16, 1), int))
    return (coarse + random.randint(0, 56, coarse.shape)).astype(np.uint8)


def torch_fidelity(name: str) -> Any:
    """A module of the package, without running the package's own imports, of torchvision."""
    package = types.ModuleType("torch_fidelity")
    spec = find_spec("torch_fidelity")
    assert spec is not None
    package.__path__ = list(spec.submodule_search_locations or ())
    others = {"torch_fidelity.utils": mock.MagicMock()}  # needs torchvision
    with mock.patch.dict(sys.modules, {"torch_fidelity": package} | others):
        return importlib.import_module(f"torch_fidelity.{name}")


def network(weights: dict[str, torch.Tensor] | None = None) -> torch.nn.Module:
    """torch-fidelity's module with these weights, by default random ones."""
    module = torch_fidelity("feature_extractor_inceptionv3")
    kind = module.FeatureExtractorInceptionV3
    if weights is None:
        with mock.patch.object(module, "load_state_dict_from_url"):
            with mock.patch.object(kind, "load_state_dict"):
                shapes = {k: list(v.shape) for k, v in kind("i", ["2048"]).state_dict().items()}
        weights = state(shapes)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, Path(folder) / "weights.pth")
        return kind("i", ["2048"], str(Path(folder) / "weights.pth"))


def features(module: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(pixels).permute(0, 3, 1, 2))[0].numpy()


if __name__ == "__main__":
    made = network()
    names = json.dumps({name: list(value.shape) for name, value in made.state_dict().items()})
    np.savez_compressed(FILE, shapes=names, features=features(made, images()))

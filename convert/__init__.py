"""Converts Stable Diffusion and GLIGEN checkpoints to model directories, without torch.

convert(source, destination)            convert a checkpoint in any format to a model directory
verify(source, destination)             compare the result with PyTorch's networks (needs [verify])
model_directory(name)                   the model directory for a name, converted if necessary
"""

from typing import TYPE_CHECKING

from reground_jax.basics.lazy import exports

if TYPE_CHECKING:
    from .conversion import convert
    from .locate import model_directory
    from .verification import verify

__all__ = ["convert", "model_directory", "verify"]

__getattr__ = exports(
    __name__, {"convert": "conversion", "model_directory": "locate", "verify": "verification"}
)

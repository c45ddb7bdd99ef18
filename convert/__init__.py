"""From PyTorch checkpoints of Stable Diffusion and GLIGEN to model directories, without torch.

convert(source, destination)            any form of checkpoint to a model directory
verify(source, destination)             the result beside PyTorch's networks (needs [verify])
model_directory(name)                   the directory behind a name, converted if it must be
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

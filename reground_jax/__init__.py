"""ReGround and GLIGEN in JAX: images from a prompt and boxes with phrases.

`Layout` and `Settings` are plain values and load without JAX; `Pipeline` loads it when first used.
"""

from typing import TYPE_CHECKING, Any

from reground_jax.layout import Layout
from reground_jax.settings import Settings
from reground_jax.version import __version__

if TYPE_CHECKING:
    from reground_jax.pipeline import Pipeline

__all__ = ["Layout", "Pipeline", "Settings", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from reground_jax.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

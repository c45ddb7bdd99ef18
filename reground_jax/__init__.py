"""ReGround and GLIGEN in JAX: images from a prompt and boxes with phrases.

    Layout, Settings          what to generate, and how; importable without JAX
    BoxDiff, AttentionRefocusing, LayoutGuidance, LMD      attention guidance, for Settings
    Pipeline                  a model on devices: layouts in, images out
    Session                   a batch in progress: run to a step, preview, cancel
    Programs                  the compiled programs behind both
    Model                     a model in memory
    Recipe, read_recipe, save_png                  PNGs that record how they were made
    draw_boxes, draw_layout, comparison_grid       pictures of layouts

The parts of the sampling loop are in `reground_jax.sampling`, the conversion of PyTorch checkpoints
in `reground_jax.convert`.
"""

from typing import TYPE_CHECKING

from reground_jax.attention_guidance import LMD, AttentionRefocusing, BoxDiff, LayoutGuidance
from reground_jax.basics.lazy import exports
from reground_jax.layout import Layout
from reground_jax.settings import Settings
from reground_jax.version import __version__

if TYPE_CHECKING:
    from reground_jax.draw import comparison_grid, draw_boxes, draw_layout
    from reground_jax.images import Recipe, read_recipe, save_png
    from reground_jax.model import Model
    from reground_jax.pipeline import Pipeline
    from reground_jax.programs import Programs
    from reground_jax.session import Session

__all__ = [
    "LMD",
    "AttentionRefocusing",
    "BoxDiff",
    "Layout",
    "LayoutGuidance",
    "Model",
    "Pipeline",
    "Programs",
    "Recipe",
    "Session",
    "Settings",
    "__version__",
    "comparison_grid",
    "draw_boxes",
    "draw_layout",
    "read_recipe",
    "save_png",
]

__getattr__ = exports(
    __name__,
    {
        "Model": "model",
        "Pipeline": "pipeline",
        "Programs": "programs",
        "Recipe": "images",
        "Session": "session",
        "comparison_grid": "draw",
        "draw_boxes": "draw",
        "draw_layout": "draw",
        "read_recipe": "images",
        "save_png": "images",
    },
)

"""Shared by the tests of `reground-jax app`: its models, and its page as it opens."""

from reground_jax import Layout, Settings
from reground_jax.app.examples import EXAMPLES
from reground_jax.app.form import Form, choice_values, layout_values, settings_values
from reground_jax.app.models import Models, offer
from reground_jax.app.order import Choice
from reground_jax.convert.locate import MODELS

ODD = Layout(
    "a 'dog' and\n$HOME -- a \"cat\"",
    ["a dog", "-a cat@home"],
    [(1 / 3, 0.1, 0.7, 0.9), (0.0, 0.0, 0.5, 0.123456789)],
    negative_prompt="--blurry",
)


def load(model, dtype):
    from reground_jax.pipeline import Pipeline

    return Pipeline.load(model.directory, dtype=dtype)


def built_in() -> Models:
    """The models that the page offers by itself."""
    names = ("emoji", "emoji-parallel")
    return Models([offer(name, MODELS / name) for name in names], load)


def recommended(models: Models, name: str = "emoji") -> Settings:
    return models[name].recommended


def form(models: Models, layout: Layout = EXAMPLES[0], **changes) -> Form:
    """The page as it opens, with a layout."""
    values = layout_values(models, "emoji", recommended(models), layout)
    values |= settings_values(recommended(models)) | choice_values(Choice())
    return Form(**{"model": "emoji", "seed": 0} | values | changes)

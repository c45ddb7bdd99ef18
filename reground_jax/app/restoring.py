"""A file dropped on the page: a PNG with its recipe inside, or a layout as JSON.

Both may be a stranger's. They choose among the page's own models at most, and no file that they
name is read.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from reground_jax.app.models import Models
from reground_jax.app.order import Choice, choice_of, hidden_settings
from reground_jax.basics.wording import shown
from reground_jax.images import Recipe, read_recipe
from reground_jax.layout import Layout
from reground_jax.settings import Settings

LARGEST = 2**24  # bytes of a layout's file
SHOWN_FIELDS = ("prompt", "phrases", "boxes", "negative_prompt", "id")


@dataclass(frozen=True)
class Restored:
    """What a file says. None: it does not say, so the page keeps what it has."""

    model: str
    layout: Layout
    settings: Settings | None = None
    choice: Choice | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()  # what is not as in the file, in sentences
    hidden: tuple[str, ...] = ()  # settings that have no field on the page


def restored(path: Path, models: Models, current: str) -> Restored:
    """The request in a file. current: the model that the page has chosen.

    Raises ValueError, with the file's name instead of its path, for one that cannot be used.
    """
    try:
        if path.suffix.lower() == ".json":
            return _from_layout(path, current)
        return _from_recipe(read_recipe(path), models, current)
    except ValueError as error:
        reason = str(error).replace(str(path), path.name)
        raise ValueError(reason if path.name in reason else f"{path.name}: {reason}") from error


def _from_layout(path: Path, current: str) -> Restored:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"has more than {LARGEST // 2**20} MiB, which no layout has")
    return Restored(current, _drawable(Layout.load(path)))


def _from_recipe(recipe: Recipe, models: Models, current: str) -> Restored:
    layout, settings = _drawable(recipe.layout), recipe.settings
    if isinstance(settings.gamma, tuple):
        raise ValueError(
            f"its gamma has three parts, {list(settings.gamma)}, and this page has one number: "
            "make it again with `reground-jax generate --from`"
        )
    try:
        choice = choice_of(settings)
    except ValueError as error:
        raise ValueError(f"{error}: make it again with `reground-jax generate --from`") from error
    model, notes = _model(recipe, models, current)
    if settings.dtype is None:
        settings = dataclasses.replace(settings, dtype=models[model].recommended.dtype)
    hidden = hidden_settings(settings, models[model].recommended)
    return Restored(model, layout, settings, choice, recipe.seed, notes, tuple(hidden))


def _model(recipe: Recipe, models: Models, current: str) -> tuple[str, tuple[str, ...]]:
    """A model of the page, and what there is to say about it."""
    if recipe.checksum is None:
        return current, (f"The picture does not record its model: {current} stays chosen.",)
    model = models.with_checksum(recipe.checksum, recipe.checkpoint)
    if model is not None:
        return model.name, ()
    note = (
        f"The picture was made with model {shown(recipe.checkpoint)} (checksum "
        f"{shown(recipe.checksum[:12])}), which is none of this page's models: {current} stays "
        "chosen, so the picture will differ."
    )
    return current, (note,)


def _drawable(layout: Layout) -> Layout:
    """The layout, if the page can show all of it."""
    fields = [field.name for field in dataclasses.fields(layout)]
    others = [f for f in fields if f not in SHOWN_FIELDS and getattr(layout, f) is not None]
    if others:
        raise ValueError(
            f"has {', '.join(others)}, but this page draws boxes with phrases only: use "
            "`reground-jax generate`"
        )
    return dataclasses.replace(layout, id=None)

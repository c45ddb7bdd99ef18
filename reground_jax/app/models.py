"""The models that the page offers: what is known of each, and pipelines that are loaded once."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reground_jax.app.order import Order
from reground_jax.settings import DTYPES, Settings

if TYPE_CHECKING:
    from reground_jax.pipeline import Pipeline
    from reground_jax.storage.description import Description

KEPT = 2  # pipelines in memory


@dataclass(frozen=True, eq=False)
class Offered:
    """A model that the page offers; its arrays have not been read."""

    name: str  # as --model has it
    directory: Path
    description: "Description"

    @property
    def recommended(self) -> Settings:
        """The model's settings, as `reground-jax generate` would use them."""
        return Settings(**{"dtype": DTYPES[0], **self.description.recommended})

    def size(self, settings: Settings) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        own = self.description.config.side
        return settings.height or own, settings.width or own

    def check(self, order: Order) -> None:
        """Raises ValueError for a layout or settings that the model does not take."""
        from reground_jax.request import check_model, check_whole

        for settings in order.columns.values():
            check_whole(self.description.config, order.layout, settings.max_boxes)
            check_model(self.description.config, settings)


class Models:
    """All models of the page, by name, and the pipelines of those that were used last."""

    def __init__(self, offered: Iterable[Offered], load: Callable[[Offered, str], "Pipeline"]):
        """load: makes the pipeline of a model in a dtype."""
        self.by_name = {model.name: model for model in offered}
        # JAX's programs run one at a time: on CPU, two at once may spoil each other's results.
        self.device = threading.Lock()
        self._load = load
        self._pipelines: dict[tuple[str, str], Pipeline] = {}

    @property
    def names(self) -> list[str]:
        return list(self.by_name)

    def __getitem__(self, name: str) -> Offered:
        return self.by_name[name]

    def with_checksum(self, checksum: str, name: str | None) -> Offered | None:
        """The model that a recipe records, if it is one of these; first the one of its name."""
        found = [m for m in self.by_name.values() if m.description.has_checksum(checksum)]
        found.sort(key=lambda model: model.name != name)
        return found[0] if found else None

    def pipeline(self, name: str, dtype: str) -> "Pipeline":
        """Loaded at its first use. The caller holds `device`."""
        key = name, dtype
        pipe = self._pipelines.pop(key, None)
        while pipe is None and len(self._pipelines) >= KEPT:
            self._pipelines.pop(next(iter(self._pipelines)))
        self._pipelines[key] = pipe or self._load(self.by_name[name], dtype)  # the last is newest
        return self._pipelines[key]


def offer(name: str, directory: Path) -> Offered:
    """Raises ValueError or OSError unless this is a model that is grounded by phrases in boxes."""
    from reground_jax.model import read_description

    description = read_description(directory)
    unet = description.config.unet
    if unet.grounding != "text" or unet.inpainting:
        kind = f"{unet.grounding or 'no'} grounding" + " and inpainting" * unet.inpainting
        raise ValueError(
            f"{name} is a model with {kind}: the page draws boxes with phrases, so give a model of "
            "kind text; `reground-jax generate` runs the others"
        )
    return Offered(name, directory, description)

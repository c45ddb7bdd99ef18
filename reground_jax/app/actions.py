"""What happens when the page's parts are used. Needs the extra [app]."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from reground_jax.app import results
from reground_jax.app.commands import command_lines, file_name, python_code
from reground_jax.app.examples import EXAMPLES
from reground_jax.app.form import (
    NAMES,
    Form,
    choice_values,
    layout_values,
    settings_values,
)
from reground_jax.app.models import Models
from reground_jax.app.order import Order
from reground_jax.app.restoring import restored
from reground_jax.app.runs import Progress, Run, Runs
from reground_jax.app.saving import Folder
from reground_jax.basics.wording import plural, slug
from reground_jax.images import encode_png
from reground_jax.settings import Settings

WAITING = "Waiting for the model …"


class Actions:
    """The page's functions. Updates of fields come in the order of `NAMES`."""

    def __init__(self, models: Models, folder: Folder):
        self.models, self.folder, self.runs = models, folder, Runs()

    def begin(self, request: gr.Request, *values: Any) -> tuple[Any, ...]:
        """Checks the request before it waits for its turn: order, results, command, Python."""
        with on_the_page():
            order = Form(*values).order(self.models)
        self.runs.begin(str(request.session_hash))
        recommended = self.models[order.model].recommended
        try:
            command = command_lines(order, recommended)
        except ValueError as error:
            command = f"# {error}"
        html = results.status(WAITING) + self.figures(order, {})
        return order, html, command, python_code(order, recommended)

    def show(self, request: gr.Request, order: Order) -> Iterator[str]:
        """The columns coming into being, as HTML."""
        run = Run(self.models, order, self.runs.flag(str(request.session_hash)))
        last, started = None, time.perf_counter()
        from reground_jax.session import Canceled

        try:
            with on_the_page():
                for last in run:
                    self._warn(run)
                    if not last.done:
                        yield results.status(_under_way(last)) + self.figures(order, last.images)
        except Canceled:
            step = 0 if last is None else last.step
            text = f"Canceled after step {step} of {order.settings.num_steps}"
            yield results.status(text) + self.figures(order, last.images if last else {})
            return
        assert last is not None
        yield self._finished(run, last, time.perf_counter() - started)

    def cancel(self, request: gr.Request) -> Any:
        """The button, until the step under way, or the compiler, has ended."""
        self.runs.cancel(str(request.session_hash))
        return gr.update(value="Canceling …", interactive=False)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.runs.forget(str(request.session_hash))

    def restore(self, path: str | None, model: str) -> list[Any]:
        """The fields from a dropped file, the drop area, and the note."""
        if path is None:
            return [*self.updates({}), gr.skip(), gr.skip()]
        with on_the_page():
            found = restored(Path(path), self.models, model)
        for note in found.notes:
            gr.Warning(note)
        settings = found.settings or self.models[found.model].recommended
        values = layout_values(self.models, found.model, settings, found.layout)
        values |= {"model": found.model} | settings_values(settings)
        if found.choice is not None:
            values |= choice_values(found.choice)
        if found.seed is not None:
            values["seed"] = found.seed
        gr.Info(f"Restored from {Path(path).name}", duration=4)
        return [*self.updates(values), None, hidden_note(found.hidden)]

    def example(self, model: str, event: gr.SelectData) -> list[Any]:
        """The fields for an example: its layout, and the model's settings."""
        layout, settings = EXAMPLES[int(event.index)], self.models[model].recommended
        values = layout_values(self.models, model, settings, layout) | settings_values(settings)
        return [*self.updates(values), hidden_note(())]

    def recommend(self, *values: Any) -> list[Any]:
        """The fields with the model's settings; boxes stay where they are."""
        form = Form(*values)
        settings = self.models[form.model].recommended
        new = settings_values(settings)
        if self.models[form.model].size(settings) != self.models[form.model].size(form.base):
            with on_the_page():
                layout = form.layout(self.models)
            new |= layout_values(self.models, form.model, settings, layout)
        return [*self.updates(new), hidden_note(())]

    def updates(self, values: dict[str, Any]) -> list[Any]:
        return [values.get(name, gr.skip()) for name in NAMES]

    def figures(self, order: Order, images: Any, names: dict[str, str] | None = None) -> str:
        """What there is of the columns, as HTML."""
        height, width = self.models[order.model].size(order.settings)
        about = {name: described(name, settings) for name, settings in order.columns.items()}
        return results.figures(about, order.layout, width / height, images, names)

    def _finished(self, run: Run, last: Progress, seconds: float) -> str:
        """The finished pictures, as PNGs with their recipes, which are also saved."""
        order = run.order
        names = {name: file_name(order, name) for name in order.columns}
        files = {name: encode_png(last.images[name], run.recipe(name)) for name in names}
        for name, content in files.items():
            try:
                self.folder.save(names[name], content)
            except OSError as error:
                gr.Warning(f"{names[name]} was not saved: {error.strerror}")
        text = f"{plural(len(files), 'picture')} in {seconds:.1f} s{_speed(last)}"
        link = results.layout_link(order.layout, f"{slug(order.layout.prompt)}.json")
        addresses = {name: results.png_address(content) for name, content in files.items()}
        return results.status(text, [link]) + self.figures(order, addresses, names)

    def _warn(self, run: Run) -> None:
        """Shows each of the model's warnings once."""
        for message in run.warnings:
            gr.Warning(message)
        run.warnings.clear()


@contextlib.contextmanager
def on_the_page() -> Iterator[None]:
    """Shows what is wrong with a request as a message on the page."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # XLA's out-of-memory error
            raise
        message = "the device ran out of memory: choose fewer columns, or a smaller model"
        raise gr.Error(message, print_exception=False) from error


def hidden_note(hidden: tuple[str, ...]) -> Any:
    """What is in force though it has no field on the page."""
    text = f"Also from the picture: {', '.join(hidden)}. **Model's settings** resets them."
    return gr.update(value=text, visible=bool(hidden))


def described(name: str, settings: Settings) -> str:
    """A few words under a picture."""
    method = settings.attention_guidance
    if method is not None:
        return f"{type(method).__name__}, {settings.wiring.replace('_', ' ')}"
    if settings.wiring == "coupled":
        return f"coupling {settings.coupling}"
    return results.EXPLAINED.get(name, "")


def _under_way(progress: Progress) -> str:
    if progress.step == 0:
        return "Compiling …"
    return f"Step {progress.step} of {progress.num_steps}{_speed(progress)}"


def _speed(progress: Progress) -> str:
    if progress.speed is None:
        return ""
    digits = 0 if progress.speed >= 10 else 2
    return f" · {progress.speed:.{digits}f} steps per second"

"""Serves the page until it is interrupted. Needs the extra [app]."""

import contextlib
import importlib.util
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reground_jax.app.models import Models
from reground_jax.app.saving import Folder

INSTALL = "pip install 'reground-jax[app]'"
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
PACKAGES = ("gradio", "gradio_image_annotation")


def check_installed() -> None:
    """Raises ValueError, which says how to install it, if a package of the page is missing."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is missing, which the page needs: {INSTALL}")


def serve(
    offer_models: Callable[[], Models],
    *,
    host: str,
    port: int | None,
    out: Path | None,
    say: Callable[[str], None],
) -> None:
    """Serves until Ctrl-C or SIGTERM. Raises ValueError or OSError if that cannot begin.

    offer_models: opens the models, which is done after what is quick to fail. say: prints a line.
    """
    with tempfile.TemporaryDirectory(prefix="reground-jax-app-") as temporary:
        os.environ.update(QUIET | {"GRADIO_TEMP_DIR": temporary})
        check_installed()
        folder, models = Folder(out), offer_models()
        threading.Thread(target=_warm_up, args=(models,), daemon=True).start()
        from reground_jax.app.page import UPLOADS, build, look  # takes seconds, as Gradio does

        page = build(models, folder)
        page.queue()
        arguments: dict[str, Any] = {"server_name": host, "server_port": port}
        try:
            _, address, _ = page.launch(
                prevent_thread_lock=True, quiet=True, share=False, inbrowser=False, ssr_mode=False,
                show_error=True, footer_links=[], max_file_size=UPLOADS, enable_monitoring=False,
                **arguments, **look(),
            )  # fmt: skip
        except OSError as error:
            way_out = "give another --port" if port else "give a --port that is free"
            raise ValueError(f"no page can be served at {host}, port {port}: {way_out}") from error
        say(f"open {address} in a browser; Ctrl-C ends the page")
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                _wait()  # Gradio prints a line for each of a component's files that it serves
        finally:
            page.close(verbose=False)


def _warm_up(models: Models) -> None:
    from reground_jax.app.form import opening
    from reground_jax.app.runs import warm_up

    with contextlib.suppress(ValueError, OSError, RuntimeError):  # the first run will tell
        warm_up(models, opening(models))


def _wait() -> None:
    """Returns after Ctrl-C or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(1):  # Windows hands on no signal while a wait without end lasts
        pass

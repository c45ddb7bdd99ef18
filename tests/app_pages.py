"""Shared by the browser's tests: what somebody does on the page of `reground-jax app`."""

import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

SECONDS = 600_000  # milliseconds to wait at most: how fast a machine is must not matter


def wait_for(address: str, process: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            urlopen(address, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None
            time.sleep(0.2)
    raise TimeoutError(address)


def draw(page, label: str, box: tuple[float, float, float, float]) -> None:
    """Drags a box on the paper, and names it in the dialog."""
    page.click('#rg-canvas [aria-label="Create box"]')
    paper = page.locator("#rg-canvas canvas").bounding_box()
    x0, y0, x1, y1 = (
        paper["x" if i % 2 == 0 else "y"] + side * paper["width" if i % 2 == 0 else "height"]
        for i, side in enumerate(box)
    )
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move(x1, y1, steps=8)
    page.mouse.up()
    page.fill('#model-box-edit input[aria-label="Label"]', label)
    page.click("#model-box-edit button:text-is('OK')")
    page.wait_for_selector("#model-box-edit", state="detached")


def select(page, point: tuple[float, float]) -> None:
    """Clicks on the paper with the tool that moves boxes."""
    page.click('#rg-canvas [aria-label="Drag boxes"]')
    paper = page.locator("#rg-canvas canvas").bounding_box()
    page.mouse.click(
        paper["x"] + point[0] * paper["width"], paper["y"] + point[1] * paper["height"]
    )


def clear(page) -> None:
    """Removes the two boxes of the first example."""
    for point in ((0.3, 0.45), (0.75, 0.8)):
        select(page, point)
        page.click('#rg-canvas [aria-label="Remove box"]')


def status(page) -> str:
    return page.inner_text("#rg-results .rg-status")


def finish(page) -> None:
    """Presses Run, and waits for the pictures."""
    page.click("#rg-run")
    page.wait_for_selector("#rg-results .rg-save", state="detached")
    page.wait_for_selector("#rg-results figure .rg-save", timeout=SECONDS)
    page.wait_for_selector("#rg-run:not([disabled])")


def save(page, column: str, folder: Path) -> Path:
    """The picture of a column, as its link saves it."""
    figure = page.locator("#rg-results figure", has_text=column)
    with page.expect_download() as download:
        figure.locator(".rg-save").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path

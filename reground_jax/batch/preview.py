"""Contact sheets: the first images of a run with their boxes, for a look while it is running."""

import io

from PIL import Image, ImageOps

from reground_jax.batch.shards import Made
from reground_jax.batch.store import Store, write
from reground_jax.draw import draw_boxes
from reground_jax.layout import Layout

SIDE = 256  # pixels of a tile
COLUMNS, ROWS = 6, 8


def write_sheets(store: Store, unit: int, images: list[Made]) -> None:
    """Writes as many `preview/UNIT-NUMBER.png` as the images need, if there are any."""
    size = COLUMNS * ROWS
    for number, start in enumerate(range(0, len(images), size)):
        buffer = io.BytesIO()
        contact_sheet(images[start : start + size]).save(buffer, format="PNG")
        write(store, f"preview/{unit:09d}-{number:02d}.png", buffer.getvalue())


def contact_sheet(images: list[Made]) -> Image.Image:
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * SIDE), "white")
    for place, made in enumerate(images):
        with Image.open(io.BytesIO(made.content)) as picture:
            drawn = draw_boxes(picture.convert("RGB"), Layout.from_json(made.record["layout"]))
        tile = ImageOps.contain(drawn, (SIDE, SIDE))
        sheet.paste(tile, (place % COLUMNS * SIDE, place // COLUMNS * SIDE))
    return sheet

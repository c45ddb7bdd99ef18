"""Layouts from CoBench (github.com/lparolari/cobench, `benchmarks/instructions/*_bench.csv`).

A CSV file with the columns id, category, prompt, obj1, bbox1, obj2, bbox2, ... Boxes are text,
"x0,y0,x1,y1" in pixels of 512 x 512, and empty in rows with fewer objects.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt
from reground_jax.readers.pixels import corner_fractions

SIDE = 512  # pixels of the image that the boxes are for
COLUMNS = ("prompt", "obj1", "bbox1")


def read_cobench(path: str | Path) -> Iterator[Layout | Rejected]:
    """The layouts of a file in order; the id is the row's.

    Raises ValueError if the file is not in this format; an invalid row becomes a Rejected.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                raise ValueError(f"CoBench file {path} has no column {missing[0]!r}")
            for number, row in enumerate(rows, 2):
                yield attempt(f"{path}, line {number}", _layout, row)
    except OSError as error:
        raise ValueError(f"cannot read CoBench file {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"CoBench file {path} is not CSV: {error}") from error


def _layout(row: dict[str, str | None]) -> Layout:
    numbers = [name[3:] for name in row if re.fullmatch(r"obj\d+", name or "") and row[name]]
    return Layout(
        prompt=row["prompt"],  # type: ignore[arg-type]
        phrases=[row[f"obj{number}"] for number in numbers],  # type: ignore[misc]
        boxes=[_box(row.get(f"bbox{number}")) for number in numbers],
        id=row.get("id"),
    )


def _box(text: str | None) -> tuple[float, float, float, float]:
    try:
        edges = [float(edge) for edge in (text or "").strip("[]() ").split(",")]
    except ValueError:
        raise ValueError(f"its box is {shown(text)}: expected x0,y0,x1,y1 in pixels") from None
    return corner_fractions(edges, (SIDE, SIDE))

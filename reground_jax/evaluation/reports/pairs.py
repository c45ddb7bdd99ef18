"""A blind comparison for people: pages of image pairs, left and right shuffled, and a key.

`pairs/index.html` holds everything it needs, and nothing that says which image is whose: pixels are
encoded anew, without the recipes of their files. `pairs/key.json` says it.
"""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from reground_jax.basics.json_text import parse_json
from reground_jax.basics.wording import shown
from reground_jax.batch.store import open_store
from reground_jax.evaluation.studies.conditions import ENDS, Condition
from reground_jax.evaluation.studies.study import Study
from reground_jax.readers import read_json

FOLDER, KEY = "pairs", "key.json"
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Which image fits its text better?</title>
<style>
body {{ font: 16px system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em;
  color: #1f2328 }}
figure {{ margin: 3em 0 }}
label {{ display: inline-block; width: 48%; text-align: center; cursor: pointer }}
img {{ width: 100%; border-radius: 6px }}
label:has(:checked) img {{ outline: 4px solid #0969da }}
</style>
<h1>Which image fits its text better?</h1>
<p>Choose one of each pair. When you are done, save your answers and send the file back.</p>
<form>
{figures}
</form>
<button type="button">Save my answers</button>
<script>
document.querySelector("button").onclick = () => {{
  const answers = Object.fromEntries(new FormData(document.querySelector("form")));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(answers)]));
  link.download = "answers.json";
  link.click();
}};
</script>
</html>
"""
FIGURE = """\
<figure>
<figcaption>{number}. {prompt}</figcaption>
<label><img alt="left" src="{left}"><br><input type="radio" name="{number}" value="left"></label>
<label><img alt="right" src="{right}"><br><input type="radio" name="{number}" value="right"></label>
</figure>
"""


def write_pairs(study: Study, count: int) -> str:
    """Writes the page and the key of `count` layouts of the main set, and returns the page's name.

    The wirings are compared at the largest gamma. Which layouts, their order and who is on the left
    depend on the layouts' ids alone. Raises ValueError if a wiring was not measured, or if there
    are fewer layouts.
    """
    cases = study.data.sets[0]
    conditions = [_condition(study, method) for method in ENDS]
    if not 1 <= count <= cases.count:
        raise ValueError(f"--pairs is {count}: this study has {cases.count} layouts to choose from")
    hashes = [hashlib.sha256(f"pair:{case.layout.id}".encode()).digest() for case in cases.used]
    lines = sorted(range(cases.count), key=hashes.__getitem__)[:count]
    images = dict(zip(ENDS, (study.pictures(c, lines) for c in conditions), strict=True))
    figures, key = [], []
    for number, line in enumerate(lines, 1):
        sides = ENDS if hashes[line][-1] % 2 else ENDS[::-1]
        layout = cases.used[line].layout
        pictures = [_data_url(images[method][number - 1]) for method in sides]
        figures.append(
            FIGURE.format(
                number=number, prompt=html.escape(layout.prompt), left=pictures[0],
                right=pictures[1],
            )
        )  # fmt: skip
        key.append({"pair": number, "id": layout.id, "left": sides[0], "right": sides[1]})
    facts: dict[str, Any] = {"gamma": conditions[0].gamma, "cases": cases.name, "pairs": key}
    study.save(f"{FOLDER}/{KEY}", json.dumps(facts, indent=1).encode() + b"\n")
    page = f"{FOLDER}/index.html"
    study.save(page, PAGE.format(figures="".join(figures)).encode())
    return page


def count_answers(out: str, files: Sequence[str]) -> dict[str, int]:
    """How often each wiring was chosen. out: of the study. files: what people saved, one each.

    Raises ValueError if the study has no pairs, or if a file is not of them.
    """
    store = open_store(out)
    try:
        key = parse_json(store.read(f"{FOLDER}/{KEY}"))
    except FileNotFoundError:
        raise ValueError(f"{out} has no {FOLDER}/{KEY}: make the page with --pairs first") from None
    sides = {str(pair["pair"]): pair for pair in key["pairs"]}
    chosen: list[str] = []
    for file in files:
        given = read_json(file, "answers")
        if not isinstance(given, dict):
            raise ValueError(f"{file} is not what the page of pairs saves: {shown(given)}")
        for number, side in given.items():
            if number not in sides or side not in ("left", "right"):
                raise ValueError(
                    f"{file} has {shown({number: side})}, which is no answer to the pairs of "
                    f"{out}: they are 1 to {len(sides)}, left or right"
                )
            chosen.append(sides[number][side])
    return {method: chosen.count(method) for method in ENDS}


def _condition(study: Study, method: str) -> Condition:
    conditions = study.conditions()
    model, cases = conditions[0].model, study.data.sets[0].name
    own = [c for c in conditions if (c.model, c.cases, c.method) == (model, cases, method)]
    if not own:
        raise ValueError(f"--pairs compares {' and '.join(ENDS)}: {method} was not measured")
    return max(own, key=lambda condition: condition.gamma)


def _data_url(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

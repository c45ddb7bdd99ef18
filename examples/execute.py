"""Runs notebooks and keeps their outputs small: `python examples/execute.py [NOTEBOOK ...]`.

Without arguments it runs every notebook in this folder and writes it back in place; `--into DIR`
writes copies to a folder instead. Each notebook runs in a temporary folder, so it leaves nothing
behind, and an error in a cell stops the run with its traceback. Needs nbclient and ipykernel.
"""

import argparse
import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
TIMEOUT = 600  # seconds, for a cell on a busy machine
WIDEST = 900  # pixels of a picture in an output
COLORS = 128  # of a picture in an output
PNG = "image/png"


def execute(path: Path, out: Path) -> None:
    """Runs the notebook at `path` and writes it with its outputs to `out`."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(env=environment(folder))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := smaller(output))]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, out)


def environment(folder: str) -> dict[str, str]:
    """Commands in cells are those of this Python, and what they cache stays in the folder."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cache = {"XDG_CACHE_HOME": f"{folder}/.cache", "HF_HOME": f"{folder}/.cache/huggingface"}
    quiet = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm asks for widgets
    return {**os.environ, **cache, **quiet, "PATH": programs}


def smaller(output: Any) -> Any:
    """The output with a lighter picture, and without the earlier states of progress bars."""
    if output.output_type == "stream":
        lines = [line.rpartition("\r")[2] for line in output.text.split("\n")]
        output.text = "\n".join(lines)
        return output if output.text.strip() else None
    data = output.get("data", {})
    if PNG in data:
        data[PNG] = base64.b64encode(compressed(base64.b64decode(data[PNG]))).decode()
        data.pop("image/jpeg", None)
        data["text/plain"] = "a picture"  # without the address of an object in memory
    return output


def compressed(content: bytes) -> bytes:
    """A PNG of at most WIDEST pixels and COLORS colors."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    if picture.width > WIDEST:
        height = round(picture.height * WIDEST / picture.width)
        picture = picture.resize((WIDEST, height), Image.Resampling.LANCZOS)
    if picture.getcolors(COLORS) is None:  # it has more
        picture = picture.quantize(
            COLORS, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
        )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs notebooks and keeps their outputs small.")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--into", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    for path in arguments.notebooks or sorted(HERE.glob("*.ipynb")):
        print(path, flush=True)
        execute(path, path if arguments.into is None else arguments.into / path.name)


if __name__ == "__main__":
    main()

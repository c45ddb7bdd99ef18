"""The documentation: links lead somewhere, names and commands exist, and examples run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import reground_jax
import reground_jax.convert
import reground_jax.sampling
from reground_jax import Layout, Pipeline
from reground_jax.cli import build_parser
from tests.models import ONE_LEVEL, tiny_model

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [*DOCS.glob("*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md"]
    + list((ROOT / "reground_jax").rglob("*.md"))
)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
BLOCK = re.compile(r"(?:<!-- (.*?) -->\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[tuple[str, str, str]]:
    """(page, mark, text) of all code blocks in a language; that of commands has no name."""
    return [
        (page.relative_to(ROOT).as_posix(), mark, text)
        for page in PAGES
        for mark, name, text in BLOCK.findall(page.read_text("utf-8"))
        if name == language
    ]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, which GitHub and mkdocs make alike."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    broken = []
    for path, anchor in LINK.findall(prose):
        if ":" in path:
            continue
        target = page.parent / path if path else page
        if not target.exists():
            broken.append(path)
        elif anchor and anchor not in anchors(target):
            broken.append(f"{path}#{anchor}")
    assert not broken


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert not [page.name for page in DOCS.glob("*.md") if f": {page.name}\n" not in navigation]


def test_every_public_name_is_in_the_reference():
    listed = set(re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text("utf-8"), flags=re.M))
    public = {f"reground_jax.{name}" for name in reground_jax.__all__}
    public |= {f"reground_jax.sampling.{name}" for name in reground_jax.sampling.__all__}
    public |= {f"convert.{name}" for name in reground_jax.convert.__all__}  # the folder
    assert public <= listed


def test_commands_have_valid_options():
    parser, count = build_parser(), 0
    for page, _, text in blocks("") + blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("reground-jax "):
                _, unknown = parser.parse_known_args(shlex.split(line, comments=True)[1:])
                assert not unknown, f"{page}: {line}"
                count += 1
    assert count > 20


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_model(tiny_model(**ONE_LEVEL))


MARKED = [block for block in blocks("python") if block[1] == "runs"]


@pytest.mark.parametrize("page, mark, example", MARKED, ids=[page for page, *_ in MARKED])
def test_marked_examples_run(pipe, page, mark, example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "load", lambda *args, **keywords: pipe)
    exec(compile(example, page, "exec"), {})


def test_the_loop_of_ones_own_runs(pipe):
    ((page, _, example),) = [block for block in blocks("python") if block[1] == "own loop"]
    scope = {"pipe": pipe, "layout": Layout("a cat", ["a cat"], [(0, 0, 0.5, 0.5)])}
    exec(compile(example, page, "exec"), scope)
    images = np.asarray(scope["images"])
    assert images.shape == (1, 16, 16, 3) and np.isfinite(images).all()

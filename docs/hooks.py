"""For `make docs`: links that leave docs/, and docstrings with columns.

Pages link as they do in the repository, so they can be read there. What they link to outside of
docs/ is put into the site under repository/: Markdown as pages, pictures and records as files.
Other files and folders are named instead of linked, because the site does not hold them.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"(!?\[[^]]*\])\(([^)#\s:]+)(#[^)\s]*)?\)")
KEPT = (".md", ".txt", ".json", ".png", ".svg")
INDEX = ("log.txt", "report.md", "README.md")  # what stands for a folder
ROW = re.compile(r"(\w[\w, ]*?)  +(\S.*)")


def on_files(files: Any, config: Any, **_: Any) -> None:
    """Adds everything outside of docs/ that a page links to, and what that links to in turn."""
    pages = [Path(page.abs_src_path) for page in files.documentation_pages()]
    while pages:
        page = pages.pop()
        for target in _targets(page):
            place = _place(target)
            if place is not None and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(target)))
                pages += [target] * (target.suffix == ".md")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with links that lead to places in the site."""
    source = Path(page.file.abs_src_path)
    folder = posixpath.dirname(page.file.src_uri) or "."

    def link(found: re.Match[str]) -> str:
        text, path, anchor = found.groups()
        target = _target(source, path)
        if target is None:
            return found[0]
        place = _place(target)
        if place is not None:
            return f"{text}({posixpath.relpath(place, folder)}{anchor or ''})"
        name = f"`{target.relative_to(ROOT).as_posix()}{'/' * target.is_dir()}`"
        return name if "`" in text else f"{text[1:-1]} ({name})"

    return LINK.sub(link, markdown)


def _targets(page: Path) -> Iterator[Path]:
    for _, path, _ in LINK.findall(page.read_text("utf-8")):
        if (target := _target(page, path)) is not None:
            yield target


def _target(page: Path, path: str) -> Path | None:
    """What a link of a page leads to; None if that is in docs/ or not in the repository."""
    target = (page.parent / path).resolve()
    if ROOT not in target.parents or (DOCS in target.parents and DOCS in page.parents):
        return None
    return next((target / name for name in INDEX if (target / name).exists()), target)


def _place(target: Path) -> str | None:
    """Where it is in the site; None if it is not there (tests/test_docs.py finds broken links)."""
    if target == ROOT / "README.md":
        return "index.md"
    if target.suffix not in KEPT or not target.exists():
        return None
    if DOCS in target.parents:
        return target.relative_to(DOCS).as_posix()
    return "repository/" + target.relative_to(ROOT).as_posix()


class Columns(griffe.Extension):
    """Docstrings list names and their meanings in two columns; a list of definitions shows them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that is read."""
        if obj.docstring is not None:
            paragraphs = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(map(_definitions, paragraphs))


def _definitions(paragraph: str) -> str:
    lines = paragraph.split("\n")
    if not ROW.fullmatch(lines[0]):
        return paragraph
    made = []
    for line in lines:
        if row := ROW.fullmatch(line):
            names = ", ".join(f"`{name.strip()}`" for name in row[1].split(","))
            made += ["", names, f":   {row[2]}"]
        else:
            made.append(f"    {line.strip()}")
    return "\n".join(made).strip()

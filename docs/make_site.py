"""Copy docs/*.md to build/docs for the site, with what the tutorials printed and the reference from docstrings.

    python docs/make_site.py notebooks    build/notebooks/*.ipynb from the tutorials, not run
    python docs/make_site.py              build/docs, which `zensical build --strict` makes build/site of

The pages stay plain Markdown. What a site needs beyond that is added to the copies: outputs of cells, where
build/notebooks has been run (`make docs-test`), and one page of docstrings. Links that leave docs/ keep their text
only, since a site has no files of the repository.
"""

import base64
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from make_api import PACKAGES

DOCS = Path(__file__).parent
BUILD = DOCS.parent / "build"
NOTEBOOKS = BUILD / "notebooks"
CELL = re.compile(r"^```python\n(.*?)^```\n?", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)#\s]*)(#[^)\s]*)?\)")
MIME = ("image/png", "text/plain")


def live_pages() -> list[Path]:
    """The pages whose ```python blocks are cells, run from top to bottom."""
    return [*sorted((DOCS / "tutorials").glob("*.md")), DOCS / "concepts.md"]


def cells(text: str) -> list[str]:
    """The code of a live page, cell by cell."""
    return CELL.findall(text)


def write_notebooks() -> None:
    """A notebook for every live page, by jupytext: text and code, no outputs."""
    import jupytext

    NOTEBOOKS.mkdir(parents=True, exist_ok=True)
    for page in live_pages():
        notebook = jupytext.read(page)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        jupytext.write(notebook, NOTEBOOKS / f"{page.stem}.ipynb")


def outputs_of(page: Path) -> list[list[dict[str, Any]]]:
    """What each cell of a page gave when its notebook was run; nothing for one that differs from the page."""
    path = NOTEBOOKS / f"{page.stem}.ipynb"
    if not path.exists():
        return []
    import nbformat

    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    same = [cell.source.strip() for cell in code] == [cell.strip() for cell in cells(page.read_text("utf-8"))]
    return [cell.outputs for cell in code] if same else []


def shown(output: dict[str, Any], picture: Path) -> str:
    """One output as Markdown; a picture is written to a file."""
    data = output.get("data") or {"text/plain": output.get("text", "")}
    kind = next((mime for mime in MIME if mime in data), None)
    if kind == "image/png":
        picture.write_bytes(base64.b64decode(data[kind]))
        return f"![What the cell draws]({picture.name})\n\n"
    text = data[kind].rstrip() if kind else ""
    return f"```text\n{text}\n```\n\n" if text else ""


def joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs of a cell without standard error; prints that follow one another are one, uncut by flushes."""
    found: list[dict[str, Any]] = []
    for one in (one for one in outputs if one.get("name") != "stderr"):
        if one.get("name") == "stdout" and found and found[-1].get("name") == "stdout":
            found[-1] = {**found[-1], "text": found[-1]["text"] + one["text"]}
        else:
            found.append(dict(one))
    return found


def with_outputs(page: Path, folder: Path) -> str:
    """The text of a live page, behind every cell what it printed and drew."""
    outputs = iter([joined(one) for one in outputs_of(page)])
    count = iter(range(1000))

    def replaced(match: re.Match[str]) -> str:
        given = (shown(one, folder / f"{page.stem}-{next(count)}.png") for one in next(outputs, []))
        return f"{match[0]}\n{''.join(given)}"

    return CELL.sub(replaced, page.read_text("utf-8"))


def within(text: str, page: Path) -> str:
    """The text with links that leave docs/, or lead to a folder or a file that is not shown, as their words."""

    def replaced(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(page.parent / match[3])) if match[3] else page
        return match[0] if target.is_relative_to(DOCS) and target.suffix in (".md", ".png") else match[2]

    return LINK.sub(replaced, text)


def reference() -> str:
    """The page that mkdocstrings fills: every public name with its docstring."""
    from importlib import import_module

    parts = ["# The Python API, from the docstrings\n"]
    seen: set[int] = set()
    for package in PACKAGES:
        module = import_module(f"opencrate.{package}".rstrip("."))
        for name in module.__all__:
            thing = getattr(module, name)
            place = getattr(thing, "__module__", "")
            if place.startswith("opencrate") and hasattr(thing, "__qualname__") and id(thing) not in seen:
                seen.add(id(thing))
                parts.append(f"::: {place}.{thing.__qualname__}\n")
    return "\n".join(parts)


def write_pages() -> None:
    """build/docs, made anew."""
    target = BUILD / "docs"
    shutil.rmtree(target, ignore_errors=True)
    live = live_pages()
    for page in sorted(DOCS.rglob("*.md")):
        copy = target / page.relative_to(DOCS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = with_outputs(page, copy.parent) if page in live else page.read_text("utf-8")
        copy.write_text(within(text, page), "utf-8")
    shutil.copytree(DOCS / "images", target / "images")
    (target / "reference.md").write_text(reference(), "utf-8")


if __name__ == "__main__":
    write_notebooks() if sys.argv[1:] == ["notebooks"] else write_pages()

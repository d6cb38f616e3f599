"""Tutorials and the page of concepts: their cells compile, in the long form they run, and the site is made of them."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def _site(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("make_site")


PAGES = [*sorted((DOCS / "tutorials").glob("*.md")), DOCS / "concepts.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_cells_compile_and_say_what_they_found(page, monkeypatch):
    site = _site(monkeypatch)
    text = page.read_text("utf-8")
    cells = site.cells(text)
    assert len(cells) >= 2 and page in site.live_pages()
    for number, cell in enumerate(cells):
        compile(cell, f"{page.name}, cell {number}", "exec")
        assert max(map(len, cell.splitlines())) <= 120
    assert sum("print(" in cell for cell in cells) >= 2
    assert text.count("```python\n") == len(cells), "a block that is not closed, or indented"
    shell = ("```bash", "```sh\n", "```shell")  # would be run as cells
    assert not any(word in text for word in shell), "commands that are not run stand in ```console"


def test_six_tutorials_are_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sum(name.startswith("tutorials/") for name in pages) == 6
    assert [name for name in pages if f" {name}\n" not in menu] == []


def test_start_page_names_every_page():
    start = (DOCS / "index.md").read_text("utf-8")
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"index.md"}
    assert [name for name in sorted(pages) if f"]({name})" not in start] == []


def test_links_out_of_the_documents_are_words_on_the_site(monkeypatch):
    site = _site(monkeypatch)
    text = "[a](data.md#parts) [b](../README.md) [c](https://x.org) ![d](images/compress.png) [e](../results)"
    kept = "[a](data.md#parts) b [c](https://x.org) ![d](images/compress.png) e"
    assert site.within(text, DOCS / "gpu.md") == kept


def test_outputs_stand_behind_their_cells(monkeypatch, tmp_path):
    site = _site(monkeypatch)
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nprint(1)\n```\n\nWords.\n\n```python\n2\n```\n")
    printed = [{"output_type": "stream", "name": "stdout", "text": text} for text in ("1\n", "one\n")]
    drawn = [
        {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}},
        {"name": "stderr", "text": "noise"},
    ]
    monkeypatch.setattr(site, "outputs_of", lambda page: [printed, drawn])
    made = site.with_outputs(page, tmp_path)
    assert (
        made.index("print(1)") < made.index("```text\n1\none\n```") < made.index("Words.") < made.index("](page-1.png)")
    )
    assert "noise" not in made and (tmp_path / "page-1.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page, tmp_path):
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = jupytext.read(page)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)

"""The documents say only what exists: README code runs, every row of equations.md resolves, links and names are real."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import opencrate

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EQUATIONS = (ROOT / "docs" / "equations.md").read_text()


def _python_blocks(text: str) -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return [block for block in blocks if not block.startswith("# not run")]


def _rows(text: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row and not set(row[0]) <= set("-: ")]


@pytest.mark.parametrize("number", range(len(_python_blocks(README))))
def test_readme_block_runs(number):
    exec(compile(_python_blocks(README)[number], f"README block {number}", "exec"), {})


def test_readme_starts_with_code_and_stays_short():
    lines = README.splitlines()
    assert len(lines) <= 250
    assert any(line.startswith("```python") for line in lines[:30])


def test_readme_commands_exist():
    from opencrate.cli.main import COMMANDS

    named = {match for match in re.findall(r"`opencrate (\w+)", README)}
    assert named and named <= set(COMMANDS)


def test_public_names_resolve():
    for name in opencrate.__all__:
        assert getattr(opencrate, name) is not None


def _equation_rows() -> list[list[str]]:
    return [row for row in _rows(EQUATIONS) if len(row) == 4 and row[0] != "equation"]


def test_equations_table_is_not_empty():
    assert len(_equation_rows()) >= 15


@pytest.mark.parametrize("row", _equation_rows(), ids=lambda row: row[0])
def test_equation_row_resolves(row):
    _, _, functions, tests = row
    functions, tests = re.findall(r"`([^`]+)`", functions), re.findall(r"`([^`]+)`", tests)
    assert functions and tests
    for function in functions:
        module, *names = function.split(".")
        target = importlib.import_module(f"opencrate.{module}")
        for name in names:
            target = getattr(target, name)
    for test in tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
)
def test_local_links_exist(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{document} links to {target}"


def test_config_options_named_in_differences_exist():
    text = (ROOT / "docs" / "differences.md").read_text()
    fields = set(opencrate.CrateConfig.__dataclass_fields__)
    named = set(re.findall(r"`([a-z]+_[a-z_]+)(?:=[^`]*)?`", text)) - {"sparse_rate_reduction", "load_official"}
    assert named and named <= fields, named - fields

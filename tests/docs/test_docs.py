"""The documents say only what exists: README code runs, every row of equations.md resolves, links and names are real."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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
    assert len(lines) <= 150
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
        module, _, name = function.rpartition(".")
        assert hasattr(importlib.import_module(f"opencrate.{module}"), name), function
    for test in tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test


def _headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "document",
    [
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/gpu/README.md"),
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
    ],
)
def test_local_links_exist(document):
    """Files, and the headings within them."""
    path = ROOT / document
    for target, _, heading in re.findall(r"\]\((?!https?://)([^)#]*)(#([^)]+))?\)", path.read_text()):
        file = path.parent / target if target else path
        assert file.exists(), f"{document} links to {target}"
        assert not heading or heading in _headings(file), f"{document} links to {target}#{heading}"


def test_config_options_named_in_differences_exist():
    text = (ROOT / "docs" / "differences.md").read_text()
    fields = set(opencrate.CrateMAEConfig.__dataclass_fields__)  # CrateConfig's, and its own
    named = set(re.findall(r"`([a-z]+_[a-z_]+)(?:=[^`]*)?`", text)) - {"sparse_rate_reduction", "load_official"}
    assert named and named <= fields, named - fields


def test_architecture_names_every_package_in_order():
    from tests.contract.test_architecture import ORDER

    text = (ROOT / "docs" / "architecture.md").read_text()
    assert " → ".join(ORDER) in text
    folders = [path.name for path in (ROOT / "src" / "opencrate").iterdir() if (path / "__init__.py").exists()]
    assert [name for name in folders if f"  {name}/ " not in text] == []
    flat = [path.stem for path in (ROOT / "src" / "opencrate").glob("[a-z]*.py")]
    families = ("configuration_", "modeling_")
    assert [name for name in flat if not name.startswith(families) and f" {name}.py" not in text] == []


def _example(name: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_example_train_plain_pytorch():
    output = _example("train_plain_pytorch.py", "--epochs", 1)
    assert "test accuracy" in output and output.count("R^c") == 6


def test_example_attention_maps(tmp_path):
    config = opencrate.CrateConfig.from_size("digits", num_hidden_layers=2)
    opencrate.CrateForImageClassification(config).save_pretrained(tmp_path / "model")
    size = {"height": 8, "width": 8}
    opencrate.CrateImageProcessor(size=size, do_center_crop=False, image_mean=[0.5], image_std=[0.5]).save_pretrained(
        tmp_path / "model"
    )
    Image.new("L", (8, 8), 99).save(tmp_path / "image.png")
    _example("attention_maps.py", tmp_path / "model", tmp_path / "image.png", tmp_path / "maps.png")
    assert Image.open(tmp_path / "maps.png").width > 300


def test_examples_are_short_and_tested():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60
        assert f'_example("{path.name}"' in Path(__file__).read_text()

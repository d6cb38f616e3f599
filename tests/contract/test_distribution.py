"""What users install: the wheel holds every file of the package, and pyproject.toml declares what the code imports."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import opencrate

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCE = ROOT / "src" / "opencrate"
USED_EXTRAS = ("tensorboard", "segmentation", "onnx", "openvino", "app", "completion")
"""Optional packages that the code imports when asked to; they need not be installed here."""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: list[str]) -> set[str]:
    return {_normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def _imported() -> dict[str, set[str]]:
    """Distributions that files of the package import, each with the files."""
    found = {}
    distributions = packages_distributions()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for module in {name.partition(".")[0] for name in modules} - {*sys.stdlib_module_names, "opencrate"}:
                found.setdefault(_normal(distributions.get(module, [module])[0]), set()).add(
                    str(path.relative_to(SOURCE))
                )
    return found


def test_imports_are_declared_and_declared_packages_are_imported():
    declared, imported = _names(PROJECT["dependencies"]), _imported()
    extras = {key: _names(PROJECT["optional-dependencies"][key]) for key in USED_EXTRAS}
    known = declared.union(*extras.values())
    assert not {name: files for name, files in imported.items() if name not in known}
    needed_by_others = {"accelerate"}  # Trainer imports it
    assert declared - needed_by_others <= imported.keys()


def test_locked_versions_and_the_floor_of_torch_follow_the_ranges():
    """`make lock` has been run since the ranges were changed."""
    lowest, newest = ((ROOT / "requirements" / f"{name}.txt").read_text() for name in ("lowest", "lock"))
    floor = next(re.search(r">=([\d.]+)", text)[1] for text in PROJECT["dependencies"] if text.startswith("torch>"))
    assert re.search(rf"torch=={re.escape(floor)}(\.0)?\b", (ROOT / "Makefile").read_text())
    for requirement in PROJECT["dependencies"]:
        name, floor = re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups()
        if name != "torch":
            assert re.search(rf"^{name}=={re.escape(floor)}(\.0)*\b", lowest, re.MULTILINE), requirement
            assert re.search(rf"^{name}==", newest, re.MULTILINE), requirement
    assert not re.search(r"^(nvidia|cuda|triton)", lowest + newest, re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    listed = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True)
    files = {path.removeprefix("src/") for path in listed.stdout.splitlines() if (ROOT / path).exists()}
    if not files:  # an unpacked archive
        files = {str(path.relative_to(SOURCE.parent)) for path in SOURCE.rglob("*") if path.is_file()}
        files = {path for path in files if "__pycache__" not in path}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files
    assert {"opencrate/py.typed", "opencrate/recipes/classification/digits.yaml"} <= held
    assert any(name.endswith(".jinja") or "template" in name for name in held)
    for name in files:
        assert wheel.read(name) == (SOURCE.parent / name).read_bytes()


def test_page_on_the_package_index_has_no_link_into_the_repository(wheel):
    """Relative links of the README lead nowhere outside the repository."""
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    assert f"Version: {opencrate.__version__}" in metadata
    targets = re.findall(r"\]\(([^)\s]+)", metadata.partition("\n\n")[2])
    assert targets and not [target for target in targets if not target.startswith(("http://", "https://", "#"))]

"""The arrows between the modules, and what may be imported without the rest of the house."""

import ast
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import opencrate

ROOT = Path(opencrate.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))

# A package imports from those before it and from itself. The flat files and `conversion` have ranks of their own below.
ORDER = (
    "core",
    "stats",
    "data",
    "recipe",
    "store",
    "evaluation",
    "analysis",
    "training",
    "studies",
    "bench",
    "export",
    "reports",
    "app",
    "cli",
)
CORE = {
    **dict.fromkeys(("_logdet", "_graph", "_exports", "_hf", "_suggest", "_values", "_memory", "_files"), 0),
    "_weights": 0,
    "_by_name": 1,
    **dict.fromkeys(("objective", "recording", "linear_maps", "norms", "cache", "_pretrained", "_outputs"), 1),
    **dict.fromkeys(("calibration", "positions"), 1),
    **dict.fromkeys(("products", "image_processing_crate"), 3),
    "operators": 4,
    "attention": 5,
    **dict.fromkeys(("compression", "sparsification"), 6),
    **dict.fromkeys(("token_statistics", "representatives", "rate_gradient", "symmetric_attention"), 7),
    "guard": 8,
    "registry": 8,
    **dict.fromkeys(("blocks", "configuration_crate_blocks", "_pipelines"), 9),
    **dict.fromkeys(("configuration_crate", "configuration_crate_mae", "configuration_crate_text"), 10),
    "certificate": 10,
    **dict.fromkeys(("sizes", "modeling_crate_base"), 11),
    **dict.fromkeys(("modeling_crate", "modeling_crate_mae"), 12),
    **dict.fromkeys(("modeling_crate_text_model", "modeling_crate_text", "modeling_crate_text_heads"), 12),
    **dict.fromkeys(("conversion", "_auto"), 13),
}
NEIGHBOURS = {  # of one rank in the core, and the first may import the second
    ("_memory", "_files"),
    ("_files", "_weights"),
    ("_weights", "_suggest"),
    ("configuration_crate_mae", "configuration_crate"),
    ("modeling_crate_mae", "modeling_crate"),
    ("modeling_crate_text", "modeling_crate_text_model"),
    ("modeling_crate_text_heads", "modeling_crate_text_model"),
}
TORCH_ONLY = ("_logdet", "_graph", "calibration", "linear_maps", "products", "objective", "operators")
REMOTE_CODE = (
    "_graph",
    "calibration",
    "norms",
    "products",
    "attention",
    "operators",
    "recording",
    "linear_maps",
    "positions",
    "compression",
    "sparsification",
    "token_statistics",
    "representatives",
    "rate_gradient",
    "guard",
    "symmetric_attention",
    "registry",
    "certificate",
    "objective",
    "_logdet",
    "_hf",
    "_suggest",
    "_values",
    "blocks",
    "cache",
    "configuration_crate_blocks",
    "configuration_crate",
    "modeling_crate_base",
    "modeling_crate",
    "configuration_crate_mae",
    "modeling_crate_mae",
    "configuration_crate_text",
    "modeling_crate_text_model",
    "modeling_crate_text",
    "modeling_crate_text_heads",
    "image_processing_crate",
)


def part_of(name: str) -> str:
    """The package of a module's first name below `opencrate`."""
    return name if name in ORDER else "core"


def imported(path: Path) -> list[tuple[str, ...]]:
    """Absolute module paths that a file imports at any depth, ours starting with "opencrate"."""
    package = ("opencrate", *path.parts[:-1])
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            found += [base if node.module else (*base, alias.name) for alias in node.names]
    return found


def ours(path: Path) -> set[tuple[str, ...]]:
    """What a file imports of this package, without the package's own name."""
    return {module[1:] for module in imported(path) if module[0] == "opencrate" and len(module) > 1}


def test_every_module_has_a_place():
    assert {path.parts[0].removesuffix(".py") for path in FILES} == {*ORDER, *CORE, "__init__", "__main__"} - {"core"}


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in ("__main__",)], ids=str)
def test_packages_import_from_below(path):
    own = part_of(path.parts[0])
    if path == Path("__init__.py"):
        return  # names only, imported when asked for
    for module in ours(path):
        other = part_of(module[0])
        assert ORDER.index(other) <= ORDER.index(own), f"{path} ({own}) must not import {'.'.join(module)}"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0].removesuffix(".py") in CORE], ids=str)
def test_core_arrows_go_one_way(path):
    own = path.parts[0].removesuffix(".py")
    for other, *_ in ours(path):
        allowed = other == own or CORE[other] < CORE[own] or (own, other) in NEIGHBOURS
        assert allowed, f"{path} must not import {other}"


def test_maths_knows_no_model():
    for path in FILES:
        if path.parts[:2] in (("analysis", "maths"), ("analysis", "segmentation")):
            assert not [one for one in imported(path) if one[0] == "transformers" or one[1:3] == ("analysis", "record")]


def test_no_import_circles():
    """Also none that closes inside a function."""
    names = {".".join(path.with_suffix("").parts): path for path in FILES}
    arrows = {}
    for name, path in names.items():
        found = {".".join(module) for module in ours(path)}
        arrows[name] = {one for one in found if one in names} | {
            f"{one}.__init__" for one in found if f"{one}.__init__" in names
        }
    arrows["__init__"] = set()
    while leaves := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, f"circles among {sorted(arrows)}"


def test_objective_stands_alone():
    assert ours(Path("objective.py")) == {("_logdet",)} and not ours(Path("_logdet.py"))


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_torch_only_modules(name):
    allowed = {"torch", "opencrate", *sys.stdlib_module_names}
    assert {module[0] for module in imported(Path(f"{name}.py"))} <= allowed
    assert {module[0] for module in ours(Path(f"{name}.py"))} <= {*TORCH_ONLY}


@pytest.mark.parametrize("name", REMOTE_CODE)
def test_remote_code_imports_siblings_only(name):
    """transformers copies these files beside a saved model; it follows ``from .sibling import`` and nothing else."""
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in REMOTE_CODE
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(module.split(".")[0] == "opencrate" for module in names)


WITHOUT_TRANSFORMERS = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "huggingface_hub", "numpy", "scipy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "transformers" else real(name, package)
import torch
from opencrate.objective import coding_rate
from opencrate.operators import mssa
import opencrate
assert coding_rate(torch.eye(2), eps=1.0) > 0 and mssa(torch.eye(2), torch.ones(1, 2, 1)).shape == (2, 2)
assert opencrate.coding_rate is coding_rate and "transformers" not in sys.modules
"""


def test_measures_and_operators_need_torch_only():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT_TRANSFORMERS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


IMPORTS = {
    "import opencrate.objective": "'torch' in found and not {'transformers', 'datasets'} & found",
    "from opencrate.recipe import load_recipe; load_recipe('digits')": "not {'torch', 'transformers'} & found",
    "import opencrate": "'transformers' in found and not {'datasets', 'transformers.trainer'} & found",
}


@pytest.mark.parametrize("statement", IMPORTS)
def test_imports_bring_no_more_than_they_need(statement):
    code = f"{statement}; import sys; found = {{*sys.modules}}; assert {IMPORTS[statement]}"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModel; import opencrate",
        "import opencrate.objective; from opencrate import CrateModel",
    ],
)
def test_saved_models_open_whatever_comes_first(first, tmp_path):
    opencrate.CrateModel(opencrate.CrateConfig.from_size("digits", num_hidden_layers=1)).save_pretrained(tmp_path)
    code = f"{first}\nfrom transformers import AutoModel\nprint(type(AutoModel.from_pretrained({str(tmp_path)!r})))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert "CrateModel" in done.stdout, done.stderr[-2000:]


def test_help_is_quick():
    """Under a second at its best of three, whatever else the machine is doing."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "opencrate", "--help"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        if seconds[-1] < 1:
            break
    assert "train" in done.stdout and min(seconds) < 1, seconds


OPTION = re.compile(r"(^|[\s(`'\"])--[a-z]")
NO_MESSAGES = {"An unfinished run of OpenCRATE: --resume goes on with it.\n"}  # the mark in lock files of every version


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] != "cli"], ids=str)
def test_library_messages_name_arguments(path):
    """Not options of the command line, which a Python caller does not have; `cli.common.in_options` puts them in."""
    tree = ast.parse((ROOT / path).read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docs:
            continue
        text = node.value
        assert text in NO_MESSAGES or " " not in text or not OPTION.search(text), f"{path}:{node.lineno}: {text}"


def test_public_names_resolve():
    assert sorted(opencrate.__all__) == sorted({*opencrate.__all__})
    for name in opencrate.__all__:
        assert getattr(opencrate, name) is not None and name in dir(opencrate)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = opencrate.nothing


def test_what_is_imported_from_our_modules_is_there():
    """Also where a function imports it when it is called, which no other test may do."""
    missing = []
    for path in FILES:
        package = ("opencrate", *path.parts[:-1])
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            module = importlib.import_module(base)
            for alias in node.names:
                if not hasattr(module, alias.name) and importlib.util.find_spec(f"{base}.{alias.name}") is None:
                    missing.append(f"{path}: {base}.{alias.name}")
    assert not missing

"""Nothing of a file is executed: every way in which the package opens one is looked at in its source."""

import ast
from pathlib import Path

import pytest

import opencrate

ROOT = Path(opencrate.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
LOADERS = {"from_pretrained", "from_config", "load_custom_generate", "get_class_from_dynamic_module"}
NEVER = {"eval", "exec", "compile", "input", "__import__"}
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
READS_INPUT = {Path("_files.py"), Path("bench/worker.py")}  # the second from the process that started it


def is_own(call: ast.Attribute) -> bool:
    """`super().from_pretrained` in a model's own class."""
    return isinstance(call.value, ast.Call) and getattr(call.value.func, "id", "") == "super"


def keyword(call: ast.Call | None, name: str) -> object:
    found = [item.value for item in call.keywords if item.arg == name] if call else []
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_that_is_read_is_run(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        where = f"{path}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and node.attr in LOADERS and not is_own(node):
            assert keyword(calls.get(id(node)), "trust_remote_code") is False, f"{where}: go through _pretrained"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in SAFE:
            name, value = SAFE[ast.unparse(node.func)]
            assert keyword(node, name) is value, f"{where}: {name}={value} is missing"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in NEVER, where
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
            assert not {"dill", "joblib", "cloudpickle", "marshal"} & set(names), where
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("pickle.load", "pickle.loads", "yaml.unsafe_load"):
            raise AssertionError(where)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.stdin":
            assert path in READS_INPUT, f"{where}: go through read_standard_input"

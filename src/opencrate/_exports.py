"""Names that a package offers and loads when they are asked for, so that importing the package stays cheap."""

import ast
import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package, from the imports ``from .module import name as name``.

    They stand under `TYPE_CHECKING` in the package's `__init__`, where type checkers read them and Python does not.
    """
    module = sys.modules[package]
    loader: Any = module.__loader__
    nodes = ast.walk(ast.parse(loader.get_source(package)))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1]
    home = {alias.name: node.module for node in imports for alias in node.names if alias.asname == alias.name}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    return find, lambda: sorted({*vars(module), *home}), [*home]

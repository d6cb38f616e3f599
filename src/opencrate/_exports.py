"""Names that a package offers and loads when they are asked for, so that importing the package stays cheap."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_exports(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package; `names` has what each module below it offers.

    Type checkers do not run this: the package states the same names under `TYPE_CHECKING` (a test compares the two).
    """
    home = {name: module for module, offered in names.items() for name in offered}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    def known() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *home})

    return find, known, [*home]

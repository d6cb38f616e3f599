"""Models by name: `opencrate/cifar10` is a folder of the package opencrate-weights, where that is installed.

Needs no library, so that the command line can use it at once. `_by_name` makes transformers use it.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from ._suggest import suggest

OWNER = "opencrate/"
"""What every name of a packaged model begins with."""
INSTALL = "pip install ./weights"
_PACKAGE = "opencrate_weights"


def is_packaged_name(source: str | os.PathLike) -> bool:
    """Whether a model is named as the package names its own, and no folder of that path is there.

    >>> is_packaged_name("opencrate/digits"), is_packaged_name("runs/digits")
    (True, False)
    """
    text = str(source)
    name = text.removeprefix(OWNER)
    plain = text.startswith(OWNER) and bool(name) and "/" not in name and name not in (".", "..") and "\0" not in name
    return plain and not os.path.lexists(text)


def packaged_folder(source: str | os.PathLike) -> Path | None:
    """The folder of an installed model of that name; `None` where the package is absent or holds none of that name.

    Raises:
        ValueError: a file of the model, or the manifest, is missing or damaged.
    """
    package = weights_package()
    if package is None or not is_packaged_name(source):
        return None
    name = str(source).removeprefix(OWNER)
    return package.folder(name) if name in package.manifest() else None


def weights_package() -> ModuleType | None:
    """The module `opencrate_weights`, or `None` where it is not installed."""
    try:
        return importlib.import_module(_PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != _PACKAGE:
            raise
        return None


def installed_models() -> list[dict[str, Any]]:
    """What is installed: for each model its `name`, what the manifest says of it, its `bytes`, and `damage` in words.

    Raises:
        ValueError: the manifest is missing or damaged.
    """
    package = weights_package()
    if package is None:
        return []
    found = []
    for name, entry in package.manifest().items():
        stated = {key: value for key, value in entry.items() if key != "files"}
        size = sum(file["bytes"] for file in entry["files"].values())
        found.append({"name": OWNER + name, **stated, "bytes": size, "damage": package.damage(name)})
    return found


def not_packaged(source: str | os.PathLike) -> ValueError:
    """The error about a name that no installed model has: what is there, and how to get it."""
    package, hub = weights_package(), f"hf://{source} asks the Hugging Face Hub"
    if package is None:
        return ValueError(f"{source}: the package opencrate-weights is not installed; {how_to_install()}; {hub}")
    known = [OWNER + name for name in package.manifest()]
    hint = suggest(str(source), known) if known else "it holds no models yet"
    return ValueError(f"{source}: no model of that name in the installed opencrate-weights; {hint}; {hub}")


def how_to_install() -> str:
    """What to do where the package is absent. It is on no package index yet."""
    return f"run `{INSTALL}` in a copy of the repository (it is not on PyPI yet)"

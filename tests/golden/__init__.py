"""Numbers from the official implementations, for parity tests.

The full sets are looked for in the folder named by ``OPENCRATE_GOLDEN``, then in ``../shared/golden`` beside the
repository; without them the small committed fixtures in this folder serve (made by ``make_fixtures.py``: the same
values, fewer of the large tensors). Tests iterate over the keys present and assert how many they compared.
"""

import json
import os
from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).parent


def golden_root() -> Path:
    """Folder of the most complete golden sets at hand."""
    for candidate in (os.environ.get("OPENCRATE_GOLDEN"), FIXTURES.parents[2] / "shared" / "golden"):
        if candidate and (Path(candidate) / "crate_classifier" / "meta.json").is_file():
            return Path(candidate)
    return FIXTURES


@cache
def _load(set_name: str, file: str) -> dict[str, Tensor]:
    return load_file(golden_root() / set_name / f"{file}.safetensors")


def load_golden(set_name: str, file: str) -> dict[str, Tensor]:
    """All tensors of ``<set_name>/<file>.safetensors`` (cached; do not modify them in place)."""
    return dict(_load(set_name, file))


def golden_meta(set_name: str) -> dict:
    """The set's ``meta.json``."""
    return json.loads((golden_root() / set_name / "meta.json").read_text())


def sub_dict(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries whose name starts with ``prefix``, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

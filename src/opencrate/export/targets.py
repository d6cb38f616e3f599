"""What a model can be exported to, what can run it, and the packages that each needs. Without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from .._suggest import suggest

FACTS = "export.json"
"""The file beside an exported model that says what it is and how it was checked."""


@dataclass(frozen=True)
class Target:
    """A form that models are exported to.

    Attributes:
        file: what holds the graph.
        words: what it is, for readers.
        tolerance: the largest difference of outputs that is accepted, as a fraction of the largest eager output.
        packages: what writing and checking it imports beside this package's own requirements.
        extra: the extra of this package that installs them.
    """

    file: str
    words: str
    tolerance: float
    packages: tuple[str, ...] = ()
    extra: str = ""


@dataclass(frozen=True)
class Backend:
    """What runs exported models.

    Attributes:
        packages: what it imports.
        extra: the extra of this package that installs them.
        runs: the targets whose files it reads.
    """

    packages: tuple[str, ...]
    extra: str
    runs: tuple[str, ...]


_ONNX = ("onnx", "onnxscript")
TARGETS = {
    "torch": Target("model.pt2", "torch.export, float32", 1e-3),
    "onnx": Target("model.onnx", "ONNX, float32", 1e-3, (*_ONNX, "onnxruntime"), "onnx"),
    "int8": Target("model.onnx", "ONNX, 8-bit linear maps", 0.1, (*_ONNX, "onnxruntime"), "onnx"),
    "openvino": Target("model.xml", "OpenVINO, float32", 1e-3, (*_ONNX, "openvino"), "openvino"),
}
BACKENDS = {
    "onnx": Backend(("onnxruntime",), "onnx", ("onnx", "int8")),
    "openvino": Backend(("openvino",), "openvino", ("openvino", "onnx")),
}


def target_named(name: str) -> Target:
    """The target of a name, when its packages are installed.

    Raises:
        ValueError: no such target, or a package is missing.
    """
    if name not in TARGETS:
        raise ValueError(f"to={name}: unknown; {suggest(name, TARGETS)}")
    target = TARGETS[name]
    _require(f"to={name}", target.packages, target.extra)
    return target


def backend_named(name: str) -> Backend:
    """The backend of a name, when its packages are installed.

    Raises:
        ValueError: no such backend, or a package is missing.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend={name}: unknown; {suggest(name, BACKENDS)}")
    backend = BACKENDS[name]
    _require(f"backend={name}", backend.packages, backend.extra)
    return backend


def _require(what: str, packages: Sequence[str], extra: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{what}: {', '.join(missing)} {verb} not installed; `pip install opencrate[{extra}]`")

"""Exported models read back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from .._files import read_json, require_file, shown
from .._pretrained import read_config, read_image_processor
from ..data.images.tensors import ImageTransform
from ..store.build import class_names_of
from .runners import Runner, runner_of
from .targets import FACTS, TARGETS, backend_named


@dataclass(frozen=True)
class ExportedModel:
    """An exported model with what lies beside it.

    Attributes:
        path: its folder.
        facts: what `export.json` says.
        run: inputs in the order of `facts["inputs"]` -> outputs in that of `facts["outputs"]`, float32 on the CPU.
    """

    path: Path
    facts: dict[str, Any]
    run: Runner

    @cached_property
    def config(self) -> Any:
        """The configuration of the model that was exported."""
        return read_config(self.path)

    @cached_property
    def transform(self) -> ImageTransform:
        """From a decoded image to what the graph reads."""
        return ImageTransform.for_model(self.config, read_image_processor(self.path))

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the logits."""
        return class_names_of(self.config)

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Of a classifier: images `(B, C, H, W)` -> `(B, num_labels)`.

        Raises:
            ValueError: the graph was made for images of one size, and these have another.
        """
        size, given = self.facts.get("size"), list(pixel_values.shape[-2:])
        if size is not None and size != given:
            raise ValueError(
                f"{shown(self.path)}: was exported for images of {size[0]}x{size[1]} pixels, and the image processor "
                f"gives {given[0]}x{given[1]}; export the model again"
            )
        return self.run(pixel_values)[0]


def open_exported(source: str | Path, backend: str = "onnx") -> ExportedModel:
    """Read a folder that `export_model` wrote.

    Args:
        source: the folder.
        backend: `onnx` (ONNX Runtime) or `openvino`.

    Raises:
        ValueError: no such folder or backend, a missing package, an export for another backend, or damaged files.
    """
    runs = backend_named(backend).runs
    path = Path(source).expanduser().absolute()
    if not (path / FACTS).is_file():
        raise ValueError(
            f"{shown(source)}: holds no {FACTS}, so no exported model; export the model to {runs[0]} first, and give "
            "the folder that was written"
        )
    facts = read_json(path / FACTS, advice="export the model again")
    if facts.get("to") not in runs:
        raise ValueError(
            f"backend={backend}: runs exports to {' or '.join(runs)}, and {shown(source)} holds one to "
            f"{shown(facts.get('to'))}; export the model to {runs[0]}"
        )
    file = require_file(path / TARGETS[facts["to"]].file, "an exported model")
    try:
        return ExportedModel(path, facts, runner_of(file, backend))
    except Exception as error:  # the runtimes have error classes of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{shown(file)}: cannot be read ({reason}); export the model again") from error

"""Models as files that run without this package (torch.export, ONNX, 8 bits, OpenVINO), checked on real inputs."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .check import Check as Check, Speed as Speed
    from .exported import ExportedModel as ExportedModel, open_exported as open_exported
    from .run import Export as Export, export_model as export_model
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)

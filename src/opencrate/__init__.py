"""OpenCRATE: white-box transformers, their objective, and the measures that make the box white.

``import opencrate`` registers the CRATE models with transformers' Auto classes and pipelines. The measures and
operators (``opencrate.objective``, ``opencrate.operators``) need torch only and work without transformers.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

__version__ = "0.1.0"

_PUBLIC = {
    "coding_rate": "objective",
    "subspace_coding_rate": "objective",
    "rate_reduction": "objective",
    "sparse_rate_reduction": "objective",
    "sparsity": "objective",
    "mssa": "operators",
    "ista": "operators",
    "CrateConfig": "configuration_crate",
    "CRATE_SIZES": "configuration_crate",
    "CrateModel": "modeling_crate",
    "CrateBackbone": "modeling_crate",
    "CrateForImageClassification": "modeling_crate",
    "CrateMAEConfig": "configuration_crate_mae",
    "CRATE_MAE_SIZES": "configuration_crate_mae",
    "CrateMAEModel": "modeling_crate_mae",
    "CrateMAEForPreTraining": "modeling_crate_mae",
    "CrateImageProcessor": "image_processing_crate",
    "CrateTextConfig": "configuration_crate_text",
    "CRATE_TEXT_SIZES": "configuration_crate_text",
    "CrateTextModel": "modeling_crate_text_model",
    "CrateForCausalLM": "modeling_crate_text",
    "CrateForMaskedLM": "modeling_crate_text",
    "CrateForSequenceClassification": "modeling_crate_text_heads",
    "CrateForTokenClassification": "modeling_crate_text_heads",
    "CrateForQuestionAnswering": "modeling_crate_text_heads",
    "CrateForMultipleChoice": "modeling_crate_text_heads",
    "analyze": "analysis.whitebox",
    "WhiteBoxReport": "analysis.whitebox",
    "BlockHooks": "analysis.foreign",
    "audit": "analysis.audit",
    "diagnose": "analysis.doctor",
    "load_official": "conversion",
    "to_official": "conversion",
}

__all__ = [*_PUBLIC, "register_auto_classes"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'opencrate' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


def register_auto_classes() -> None:
    """Make the CRATE models known to AutoConfig, AutoModel*, AutoBackbone and AutoImageProcessor (idempotent)."""
    importlib.import_module("._auto", __name__).register()


def _is_command_line() -> bool:
    """The ``opencrate`` command registers the models when a command needs them, so that ``--help`` stays fast."""
    return Path(sys.argv[0]).stem == "opencrate" or sys.orig_argv[1:3] == ["-m", "opencrate"]


if importlib.util.find_spec("transformers") and not _is_command_line():
    register_auto_classes()

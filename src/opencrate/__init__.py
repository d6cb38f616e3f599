"""OpenCRATE: white-box transformers, their objective, and the measures that make the box white.

``import opencrate`` registers the CRATE models with transformers' Auto classes and pipelines. The measures and
operators (``opencrate.objective``, ``opencrate.operators``) need torch only and work without transformers.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names as in _PUBLIC, for type checkers; a test compares the two
    from .analysis.audit.audit import audit as audit
    from .analysis.doctor.diagnose import diagnose as diagnose
    from .analysis.layers.analyze import LayerAnalysis as LayerAnalysis
    from .analysis.layers.analyze import analyze as analyze
    from .analysis.record.hooks import BlockHooks as BlockHooks
    from .configuration_crate import CrateConfig as CrateConfig
    from .configuration_crate_mae import CrateMAEConfig as CrateMAEConfig
    from .configuration_crate_text import CrateTextConfig as CrateTextConfig
    from .conversion import load_official as load_official
    from .conversion import to_official as to_official
    from .image_processing_crate import CrateImageProcessor as CrateImageProcessor
    from .modeling_crate import CrateBackbone as CrateBackbone
    from .modeling_crate import CrateForImageClassification as CrateForImageClassification
    from .modeling_crate import CrateModel as CrateModel
    from .modeling_crate_mae import CrateMAEForPreTraining as CrateMAEForPreTraining
    from .modeling_crate_mae import CrateMAEModel as CrateMAEModel
    from .modeling_crate_text import CrateForCausalLM as CrateForCausalLM
    from .modeling_crate_text import CrateForMaskedLM as CrateForMaskedLM
    from .modeling_crate_text_heads import CrateForMultipleChoice as CrateForMultipleChoice
    from .modeling_crate_text_heads import CrateForQuestionAnswering as CrateForQuestionAnswering
    from .modeling_crate_text_heads import CrateForSequenceClassification as CrateForSequenceClassification
    from .modeling_crate_text_heads import CrateForTokenClassification as CrateForTokenClassification
    from .modeling_crate_text_model import CrateTextModel as CrateTextModel
    from .objective import coding_rate as coding_rate
    from .objective import rate_reduction as rate_reduction
    from .objective import sparse_rate_reduction as sparse_rate_reduction
    from .objective import sparsity as sparsity
    from .objective import subspace_coding_rate as subspace_coding_rate
    from .operators import ista as ista
    from .operators import mssa as mssa
    from .registry import Operator as Operator
    from .registry import register_operator as register_operator
    from .sizes import list_sizes as list_sizes

__version__ = "0.1.0"

_PUBLIC = {
    "coding_rate": "objective",
    "subspace_coding_rate": "objective",
    "rate_reduction": "objective",
    "sparse_rate_reduction": "objective",
    "sparsity": "objective",
    "mssa": "operators",
    "ista": "operators",
    "Operator": "registry",
    "register_operator": "registry",
    "list_sizes": "sizes",
    "CrateConfig": "configuration_crate",
    "CrateModel": "modeling_crate",
    "CrateBackbone": "modeling_crate",
    "CrateForImageClassification": "modeling_crate",
    "CrateMAEConfig": "configuration_crate_mae",
    "CrateMAEModel": "modeling_crate_mae",
    "CrateMAEForPreTraining": "modeling_crate_mae",
    "CrateImageProcessor": "image_processing_crate",
    "CrateTextConfig": "configuration_crate_text",
    "CrateTextModel": "modeling_crate_text_model",
    "CrateForCausalLM": "modeling_crate_text",
    "CrateForMaskedLM": "modeling_crate_text",
    "CrateForSequenceClassification": "modeling_crate_text_heads",
    "CrateForTokenClassification": "modeling_crate_text_heads",
    "CrateForQuestionAnswering": "modeling_crate_text_heads",
    "CrateForMultipleChoice": "modeling_crate_text_heads",
    "analyze": "analysis.layers.analyze",
    "LayerAnalysis": "analysis.layers.analyze",
    "BlockHooks": "analysis.record.hooks",
    "audit": "analysis.audit.audit",
    "diagnose": "analysis.doctor.diagnose",
    "load_official": "conversion",
    "to_official": "conversion",
}

__all__ = [*_PUBLIC, "register_auto_classes"]


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

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

"""OpenCRATE: white-box transformers, their objective, and the measures that make the box white.

``import opencrate`` registers the CRATE models with transformers' Auto classes and pipelines. The measures and
operators (``opencrate.objective``, ``opencrate.operators``) need torch only: ``import opencrate.objective`` alone does
not load transformers. Where it came first, the models are registered with the first of the names below that needs them,
or by ``register_auto_classes()``.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._exports import lazy_exports

if TYPE_CHECKING:  # what the package offers; see _exports
    from .analysis.audit.audit import audit as audit
    from .analysis.doctor.diagnose import diagnose as diagnose
    from .analysis.doctor.inputs import diagnose_saved as diagnose_saved
    from .analysis.features.find import find_features as find_features
    from .analysis.layers.analyze import LayerAnalysis as LayerAnalysis, analyze as analyze
    from .analysis.layers.result import layer_measures as layer_measures
    from .analysis.masks.segment import segment as segment
    from .analysis.record.hooks import BlockHooks as BlockHooks
    from .analysis.theory.check import theory_check as theory_check
    from .configuration_crate import CrateConfig as CrateConfig
    from .configuration_crate_mae import CrateMAEConfig as CrateMAEConfig
    from .configuration_crate_text import CrateTextConfig as CrateTextConfig
    from .conversion import load_official as load_official, to_official as to_official
    from .evaluation.classifier import predict as predict
    from .evaluation.evaluate import evaluate as evaluate
    from .evaluation.generation import generate as generate
    from .image_processing_crate import CrateImageProcessor as CrateImageProcessor
    from .modeling_crate import (
        CrateBackbone as CrateBackbone,
        CrateForImageClassification as CrateForImageClassification,
        CrateModel as CrateModel,
    )
    from .modeling_crate_mae import CrateMAEForPreTraining as CrateMAEForPreTraining, CrateMAEModel as CrateMAEModel
    from .modeling_crate_text import CrateForCausalLM as CrateForCausalLM, CrateForMaskedLM as CrateForMaskedLM
    from .modeling_crate_text_heads import (
        CrateForMultipleChoice as CrateForMultipleChoice,
        CrateForQuestionAnswering as CrateForQuestionAnswering,
        CrateForSequenceClassification as CrateForSequenceClassification,
        CrateForTokenClassification as CrateForTokenClassification,
    )
    from .modeling_crate_text_model import CrateTextModel as CrateTextModel
    from .objective import (
        coding_rate as coding_rate,
        rate_reduction as rate_reduction,
        sparse_rate_reduction as sparse_rate_reduction,
        sparsity as sparsity,
        subspace_coding_rate as subspace_coding_rate,
    )
    from .operators import ista as ista, mssa as mssa
    from .recipe.load import load_recipe as load_recipe
    from .registry import Operator as Operator, register_operator as register_operator
    from .sizes import list_sizes as list_sizes
    from .store.kinds import kind_of as kind_of
    from .store.saved import SavedModel as SavedModel, open_saved as open_saved
    from .training.train import train as train

__version__ = "0.1.0"

_LIGHT = ("objective", "operators", "recipe", "store.kinds")
"""Modules that need no transformers, and nobody who imports one of them waits for it."""
_find, __dir__, _names = lazy_exports(__name__)
__all__ = [*_names, "register_auto_classes"]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        found = _find(name)
        if "transformers" in sys.modules and f"{__name__}._auto" not in sys.modules:
            register_auto_classes()
        return found


def register_auto_classes() -> None:
    """Make the CRATE models known to AutoConfig, AutoModel*, AutoBackbone and AutoImageProcessor (idempotent)."""
    importlib.import_module("._auto", __name__).register()


def _is_command_line() -> bool:
    """The ``opencrate`` command registers the models when a command needs them, so that ``--help`` stays fast."""
    return Path(sys.argv[0]).stem == "opencrate" or sys.orig_argv[1:3] == ["-m", "opencrate"]


def _is_for_light_module() -> bool:
    """Whether this file runs because of ``import opencrate.objective`` or the like, and transformers is not there yet.

    The import of a module below a package holds the module's lock while it imports the package. Where Python keeps its
    locks elsewhere, the models are registered: the import is slower, and nothing else.
    """
    locks = getattr(getattr(importlib, "_bootstrap", None), "_module_locks", {})
    return "transformers" not in sys.modules and any(f"{__name__}.{module}" in locks for module in _LIGHT)


if importlib.util.find_spec("transformers") and not _is_command_line() and not _is_for_light_module():
    register_auto_classes()

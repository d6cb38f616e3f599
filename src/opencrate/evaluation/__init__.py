"""How well a model does: classification, reconstruction, language, probes."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .classifier import Evaluation as Evaluation, evaluate_classifier as evaluate_classifier, predict as predict
    from .evaluate import evaluate_images as evaluate_images, evaluate_text as evaluate_text
    from .generation import Sampling as Sampling, generate as generate
    from .lambada import score_lambada as score_lambada
    from .language import TextScore as TextScore, score_masked as score_masked, score_text as score_text
    from .reconstruction import reconstruct as reconstruct, reconstruct_files as reconstruct_files
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)

"""How well a model does: classification, reconstruction, language, probes."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .classifier import Evaluation as Evaluation
    from .classifier import evaluate_classifier as evaluate_classifier
    from .classifier import predict as predict
    from .evaluate import evaluate_images as evaluate_images
    from .evaluate import evaluate_text as evaluate_text
    from .generation import Sampling as Sampling
    from .generation import generate as generate
    from .lambada import score_lambada as score_lambada
    from .language import TextScore as TextScore
    from .language import score_masked as score_masked
    from .language import score_text as score_text
    from .reconstruction import reconstruct as reconstruct
    from .reconstruction import reconstruct_files as reconstruct_files
else:
    __getattr__, __dir__, __all__ = lazy_exports(
        __name__,
        {
            "evaluate": ("evaluate_images", "evaluate_text"),
            "classifier": ("Evaluation", "evaluate_classifier", "predict"),
            "reconstruction": ("reconstruct", "reconstruct_files"),
            "language": ("TextScore", "score_masked", "score_text"),
            "lambada": ("score_lambada",),
            "generation": ("Sampling", "generate"),
        },
    )

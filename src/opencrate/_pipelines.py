"""transformers' image pipelines, which hand `CrateImageProcessor` a picture as it is."""

import os
from typing import Any

from transformers.image_utils import ImageInput
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.image_classification import ImageClassificationPipeline
from transformers.pipelines.image_feature_extraction import ImageFeatureExtractionPipeline

from .image_processing_crate import CrateImageProcessor


class _AsItIs:
    """Reads a file or PIL image with the processor instead of converting it to 8-bit RGB before.

    That conversion clips 16-bit images to white. Other processors, and pictures that are fetched from the network, are
    left to transformers.
    """

    image_processor: Any
    dtype: Any

    def preprocess(self, image: ImageInput, timeout: float | None = None, **options: Any) -> Any:
        """Model inputs of one picture."""
        known = not isinstance(image, str) or os.path.isfile(image)
        if not (known and isinstance(self.image_processor, CrateImageProcessor)):
            theirs: Any = super()
            return theirs.preprocess(image, timeout=timeout, **options)
        return self.image_processor(image, return_tensors="pt", **options).to(self.dtype)


class CrateImageClassificationPipeline(_AsItIs, ImageClassificationPipeline):
    """`image-classification`."""


class CrateImageFeatureExtractionPipeline(_AsItIs, ImageFeatureExtractionPipeline):
    """`image-feature-extraction`."""


def register_pipelines() -> None:
    """Make `transformers.pipeline` use these classes for the two tasks; safe to call again."""
    tasks = PIPELINE_REGISTRY.supported_tasks
    tasks["image-classification"]["impl"] = CrateImageClassificationPipeline
    tasks["image-feature-extraction"]["impl"] = CrateImageFeatureExtractionPipeline

"""Registration of the CRATE models with transformers' Auto classes."""

from typing import Any

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.video_processing_auto import AutoVideoProcessor  # the public name needs torchvision

from . import modeling_crate_text_heads as heads
from ._by_name import register_names
from ._pipelines import register_pipelines
from .configuration_crate import CrateConfig
from .configuration_crate_mae import CrateMAEConfig
from .configuration_crate_text import CrateTextConfig
from .image_processing_crate import CrateImageProcessor
from .modeling_crate import CrateBackbone, CrateForImageClassification, CrateModel
from .modeling_crate_mae import CrateMAEForPreTraining, CrateMAEModel
from .modeling_crate_text import CrateForCausalLM, CrateForMaskedLM
from .modeling_crate_text_model import CrateTextModel

_MODELS = {
    CrateConfig: {
        transformers.AutoModel: CrateModel,
        transformers.AutoBackbone: CrateBackbone,
        transformers.AutoModelForImageClassification: CrateForImageClassification,
    },
    CrateMAEConfig: {
        transformers.AutoModel: CrateMAEModel,
        transformers.AutoModelForPreTraining: CrateMAEForPreTraining,
    },
    CrateTextConfig: {
        transformers.AutoModel: CrateTextModel,
        transformers.AutoModelForCausalLM: CrateForCausalLM,
        transformers.AutoModelForMaskedLM: CrateForMaskedLM,
        transformers.AutoModelForMultipleChoice: heads.CrateForMultipleChoice,
        transformers.AutoModelForQuestionAnswering: heads.CrateForQuestionAnswering,
        transformers.AutoModelForSequenceClassification: heads.CrateForSequenceClassification,
        transformers.AutoModelForTokenClassification: heads.CrateForTokenClassification,
    },
}

_NAMES: tuple[tuple[Any, Any], ...] = (
    (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, CrateForCausalLM),
    (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, CrateForImageClassification),
    (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, heads.CrateForSequenceClassification),
    (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, heads.CrateForTokenClassification),
)
"""Tables that the Auto classes' `register` leaves out. A pipeline uses them to recognise its models, and
the Trainer whether label smoothing has to shift the labels (causal models)."""


class CrateVideoProcessor:
    """There is none. A pipeline looks for a class of this name, which it makes of `CrateImageProcessor`.

    Where it is not registered, transformers takes it for code of the saved folder and asks whether to run that.
    """

    @classmethod
    def from_pretrained(cls, source: object, *_: object, **__: object) -> None:
        """Always a `ValueError`."""
        raise ValueError(f"{source}: holds a model that reads images; it has no video processor")


def register() -> None:
    """Register configurations, models, processors, pipelines and names of models; safe to call again."""
    register_names()
    register_pipelines()
    AutoVideoProcessor.register(
        CrateConfig, video_processor_classes={"torchvision": CrateVideoProcessor}, exist_ok=True
    )
    for config, models in _MODELS.items():
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        config.register_for_auto_class()  # save_pretrained then writes the code too, for trust_remote_code elsewhere
        for auto_class, model in models.items():
            auto_class.register(config, model, exist_ok=True)
            model.register_for_auto_class(auto_class.__name__)
    for config in (CrateConfig, CrateMAEConfig):
        transformers.AutoImageProcessor.register(
            config, image_processor_classes={"pil": CrateImageProcessor}, exist_ok=True
        )
    CrateImageProcessor.register_for_auto_class("AutoImageProcessor")
    for names, model in _NAMES:
        names[model.config_class.model_type] = model.__name__

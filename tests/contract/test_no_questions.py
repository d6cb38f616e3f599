"""With opencrate imported, nothing that is saved here makes transformers ask whether to run the folder's code."""

import builtins

import pytest
import transformers
from transformers import AutoFeatureExtractor, AutoProcessor, PreTrainedModel, pipeline
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

import opencrate
from opencrate import CrateForImageClassification, CrateImageProcessor, CrateMAEConfig
from opencrate.data.text.tokenizers import train_tokenizer

from .common import config_of
from .text import text_config

TEXT = {
    "CrateForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "CrateForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "CrateForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "CrateForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "CrateForQuestionAnswering": ("AutoModelForQuestionAnswering", None),
    "CrateForMultipleChoice": ("AutoModelForMultipleChoice", None),
    "CrateTextModel": ("AutoModel", "feature-extraction"),
}
IMAGES = {
    "CrateForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "CrateModel": ("AutoModel", "image-feature-extraction"),
    "CrateBackbone": ("AutoBackbone", None),
    "CrateMAEForPreTraining": ("AutoModelForPreTraining", None),
    "CrateMAEModel": ("AutoModel", "image-feature-extraction"),
}
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8, "patch_size": 4}
BASELINES = {
    "ViTForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "ViTMAEForPreTraining": ("AutoModelForPreTraining", None),
}


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """What was asked on the terminal, each time with "no" for an answer."""
    questions = []
    monkeypatch.setattr(builtins, "input", lambda *words: questions.append(words) or "n")
    yield questions
    assert questions == []


def save_images(model: PreTrainedModel, folder) -> str:
    model.save_pretrained(folder)
    CrateImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


def loaded(folder: str, auto_class: str, task: str | None) -> None:
    if auto_class != "AutoBackbone":  # which asks the Hub for a local folder too
        getattr(transformers, auto_class).from_pretrained(folder)
    transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModel.from_pretrained(folder)
    AutoProcessor.from_pretrained(folder)
    for other in (AutoVideoProcessor, AutoFeatureExtractor):
        with pytest.raises((OSError, ValueError)):
            other.from_pretrained(folder)
    if task:
        pipeline(task, model=folder)
        pipeline(task, model=folder, trust_remote_code=True)


@pytest.mark.parametrize("name", IMAGES)
def test_image_models(name, tmp_path):
    config = CrateMAEConfig(**VIT) if "MAE" in name else config_of()
    loaded(save_images(getattr(opencrate, name)(config), tmp_path), *IMAGES[name])


@pytest.mark.parametrize("name", BASELINES)
def test_other_models_with_our_processor(name, tmp_path):
    model_class = getattr(transformers, name)
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1}
    config = model_class.config_class(**VIT, intermediate_size=8, **decoder if "MAE" in name else {})
    loaded(save_images(model_class(config), tmp_path), *BASELINES[name])


@pytest.mark.parametrize("name", TEXT)
def test_text_models(name, tmp_path):
    auto_class, task = TEXT[name]
    masked = name == "CrateForMaskedLM"
    tokenizer = train_tokenizer("characters", ["ab cd"], "masked" if masked else "causal")
    size = len(tokenizer)
    getattr(opencrate, name)(text_config(vocab_size=size, is_causal=not masked)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded(str(tmp_path), auto_class, task)


def test_a_folder_of_an_unknown_type_still_asks(asked, tmp_path):
    """The fixture sees questions: they are left to transformers where the class is not here."""
    folder = save_images(CrateForImageClassification(config_of()), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"model_type": "crate"', '"model_type": "crate_of_tomorrow"'))
    with pytest.raises(ValueError, match="custom code"):
        transformers.AutoConfig.from_pretrained(folder)
    assert asked
    asked.clear()

"""Plain `generate()` and plain pipelines from a saved folder: every context, every length of text, no word of advice."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, pipeline
from transformers.generation import utils as generation_utils
from transformers.pipelines import base as pipelines_base

from opencrate import (
    CrateForCausalLM,
    CrateForMaskedLM,
    CrateForSequenceClassification,
    CrateForTokenClassification,
    CrateTextModel,
)

from .test_text_generation import generated, naive_greedy
from .text import ids_of, text_model

LETTERS = ["<end>", "<mask>", "<pad>", *"abcdefghijklmnopqrstuvwxyz "]
SMALL = {"vocab_size": len(LETTERS), "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 2}


@pytest.fixture
def quiet(monkeypatch):
    """transformers says nothing about lengths or about a model that a pipeline does not know."""

    def say(message, *arguments):
        raise AssertionError(message)

    monkeypatch.setattr(generation_utils.logger, "warning", say)
    monkeypatch.setattr(pipelines_base.logger, "error", say)


def saved(model, folder) -> str:
    """A folder with the model and a tokenizer of letters, which knows the context."""
    letters = Tokenizer(models.BPE({letter: number for number, letter in enumerate(LETTERS)}, []))
    letters.decoder = decoders.Fuse()
    context = model.config.max_position_embeddings
    special = {"eos_token": "<end>", "bos_token": "<end>", "mask_token": "<mask>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, model_max_length=context, **special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("context", [2, 24, 300])
def test_text_generation_within_any_context(context, tmp_path, quiet):
    model = text_model(max_position_embeddings=context, **SMALL)
    pipe = pipeline("text-generation", model=saved(model, tmp_path))
    for length in (1, context - 1, context):
        assert len(pipe("a" * length)[0]["generated_text"]) >= length
    with pytest.raises(ValueError, match=f"more than the context of {context} .*: shorten the prompt"):
        pipe("a" * (context + 1))
    pipe.model.config.context_overflow = "crop"
    assert len(pipe("a" * (context + 1), return_tensors=True)[0]["generated_token_ids"]) <= context + 21
    assert len(pipe("a", max_new_tokens=3, return_tensors=True)[0]["generated_token_ids"]) <= 4


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True}, {"cache_implementation": "static"}])
def test_plain_generation_fills_the_context(settings, quiet):
    model = text_model()
    for length in (1, 23, 24):
        assert model.generate(ids_of(1, length), **settings).shape == (1, 25)
    assert model.generate(bos_token_id=3, **settings).shape == (1, 25)
    assert model.generate(ids_of(1, 30), context_overflow="crop", **settings).shape == (1, 50)
    assert model.generate(ids_of(1, 4), max_new_tokens=3, **settings).shape == (1, 7)
    assert model.generate(ids_of(1, 4), max_length=7, **settings).shape == (1, 7)


def test_a_length_of_the_users_own_stands(tmp_path, quiet):
    model = text_model()
    assert model.generate(ids_of(1, 4), GenerationConfig(max_length=9)).shape == (1, 9)
    own = GenerationConfig(max_new_tokens=3)
    assert model.generate(ids_of(1, 4), own).shape == (1, 7) and own.max_length is None
    assert model.generate(inputs_embeds=torch.randn(1, 4, 16), generation_config=own).shape == (1, 3)
    model.generation_config = GenerationConfig(max_new_tokens=2)
    model.save_pretrained(tmp_path)
    assert CrateForCausalLM.from_pretrained(tmp_path).generate(ids_of(1, 4)).shape == (1, 6)


def test_a_folder_of_before(tmp_path, quiet):
    """One whose generation configuration states no length, and one without any."""
    folder = saved(text_model(**SMALL), tmp_path)
    path = tmp_path / "generation_config.json"
    stated = json.loads(path.read_text())
    assert stated.pop("max_length") == 25
    path.write_text(json.dumps(stated))
    assert pipeline("text-generation", model=folder)("to be")
    path.unlink()
    assert pipeline("text-generation", model=folder)("to be")


@pytest.mark.parametrize(
    "task, cls",
    [
        ("fill-mask", CrateForMaskedLM),
        ("text-classification", CrateForSequenceClassification),
        ("token-classification", CrateForTokenClassification),
        ("feature-extraction", CrateTextModel),
    ],
)
def test_other_pipelines_cut_what_is_too_long(task, cls, tmp_path, quiet):
    pipe = pipeline(task, model=saved(text_model(cls=cls, **SMALL), tmp_path))
    cut = {"fill-mask": {"tokenizer_kwargs": {"truncation": True}}, "token-classification": {}}
    for length in (1, 23, 24, 60):
        assert pipe("<mask>" + "a" * (length - 1), **(cut.get(task, {"truncation": True}) if length > 24 else {}))
    if task != "token-classification":  # which always cuts
        with pytest.raises(ValueError, match=r"60 tokens are more than the context of 24 .*truncation=True"):
            pipe("<mask>" + "a" * 59)


# --- prompts as embeddings, and assistants -------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"cache_implementation": "static"}, {"num_beams": 3}])
def test_prompts_as_embeddings(settings):
    model, ids = text_model("overcomplete"), ids_of(2, 20)
    embeds = model.get_input_embeddings()(ids)
    for length, more in ((6, {"max_new_tokens": 8}), (20, {"max_new_tokens": 12, "context_overflow": "crop"})):
        expected = model.generate(ids[:, :length], **more, **settings)[:, length:]
        assert torch.equal(model.generate(inputs_embeds=embeds[:, :length], **more, **settings), expected)
        both = model.generate(ids[:, :length], inputs_embeds=embeds[:, :length], **more, **settings)
        assert torch.equal(both[:, length:], expected)
    with pytest.raises(ValueError, match="take up to 31 positions, more than the context of 24"):
        model.generate(inputs_embeds=embeds, max_new_tokens=12)
    assert model.generate(inputs_embeds=embeds).shape[1] == 5


def test_padded_prompts_as_embeddings():
    model, ids = text_model(), ids_of(2, 7)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    expected = generated(model, ids, attention_mask=mask)[:, 7:]
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=8), expected)


@pytest.mark.parametrize(
    "overflow, variant",
    [
        (None, "overcomplete"),
        ("error", "overcomplete"),
        ("crop", "overcomplete"),
        (None, "relative bias"),
        (None, "rope"),
    ],
)
def test_assistants_of_another_kind(overflow, variant):
    """A GPT-2 guesses for a CRATE, and a CRATE for a GPT-2: the tokens are those of the model that is assisted."""
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=24, n_embd=16, n_layer=1, n_head=2)).eval()
    gpt2.generation_config.eos_token_id = gpt2.generation_config.bos_token_id = None
    model, ids = text_model(variant), ids_of(1, 6)
    expected = naive_greedy(model, ids)
    assert torch.equal(generated(model, ids, assistant_model=gpt2, context_overflow=overflow), expected)
    assert torch.equal(generated(gpt2, ids, assistant_model=model), generated(gpt2, ids))
    with pytest.raises(ValueError, match="more than the context of 24"):
        generated(model, ids, assistant_model=gpt2, max_new_tokens=30, context_overflow=overflow)

"""The cache of a causal model by both of its names: ``past_key_values`` before transformers 5.24, ``cache`` from it."""

import pytest
import torch
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from opencrate import CrateForCausalLM, CrateForSequenceClassification, CrateForTokenClassification, CrateTextModel
from opencrate._hf import CACHE, CACHE_NAMES
from opencrate.cache import SubspaceCache

from .common import checkpoint_activations
from .text import ids_of, text_model

OTHER = next(name for name in CACHE_NAMES if name != CACHE)


def first_tensor(outputs):
    return next(value for value in outputs.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize(
    "cls", [CrateTextModel, CrateForCausalLM, CrateForTokenClassification, CrateForSequenceClassification]
)
def test_every_model_takes_the_cache_by_either_name(cls, name):
    model, ids = text_model(cls=cls, is_causal=True), ids_of(2, 9)
    cache = SubspaceCache(model.config)
    with torch.no_grad():
        expected = first_tensor(model(ids))
        pieces = [first_tensor(model(piece, **{name: cache})) for piece in ids.split([4, 1, 4], dim=1)]
    assert cache.get_seq_length() == 9
    whole = torch.cat(pieces, 1) if expected.ndim == 3 else pieces[-1]
    assert_close(whole, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", [CrateTextModel, CrateForCausalLM])
def test_outputs_hold_it_once_and_give_it_by_either_name(cls):
    outputs = text_model(cls=cls, is_causal=True)(ids_of(1, 5), use_cache=True)
    assert isinstance(outputs.cache, SubspaceCache) and outputs.cache is outputs.past_key_values is outputs[CACHE]
    assert sum(value is outputs.cache for value in outputs.values()) == 1 and OTHER not in list(outputs)
    assert text_model(cls=cls, is_causal=True)(ids_of(1, 5), use_cache=False).past_key_values is None


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_generation_and_one_block_take_either_name(name):
    model, ids = text_model(), ids_of(2, 6)
    expected = model.generate(ids, max_new_tokens=8)
    cache = SubspaceCache(model.config)
    assert torch.equal(model.generate(ids, max_new_tokens=8, **{name: cache}), expected)
    inputs = model.prepare_inputs_for_generation(ids, **{name: cache})
    assert inputs[CACHE] is cache and OTHER not in inputs

    block, tokens = model.crate.layers[0].compress, torch.randn(2, 5, 16)
    cache = SubspaceCache(model.config)
    pieces = [block(piece, **{name: cache}) for piece in tokens.split([4, 1], dim=1)]
    assert_close(torch.cat(pieces, 1), block(tokens))


def test_two_caches_are_refused():
    model = text_model()
    both = {name: SubspaceCache(model.config) for name in CACHE_NAMES}
    for call in (model, model.crate, model.generate, model.prepare_inputs_for_generation):
        with pytest.raises(ValueError, match="cache and past_key_values are two names of one argument"):
            call(ids_of(1, 3), **both)


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize("cls", [CrateForCausalLM, CrateForTokenClassification])
def test_activation_checkpointing_never_updates_a_cache_twice(cls, name):
    ids = ids_of(2, 8)
    gradients = []
    for checkpointing in (False, True):
        model = text_model(cls=cls, is_causal=True).train()
        if checkpointing:
            checkpoint_activations(model)
        cache = SubspaceCache(model.config)
        model(ids, **{name: cache}).logits.square().mean().backward()
        assert cache.get_seq_length() == (0 if checkpointing else 8)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_close(*gradients)
    filled = model.eval()(ids, use_cache=True, **{name: cache}) and cache
    with pytest.raises(ValueError, match=r"cache: one that holds tokens \(8\) does not go with activation checkpoint"):
        model.train()(ids[:, :1], **{name: filled})


def test_a_trainers_predictions_hold_no_cache(tmp_path):
    model, ids = text_model(), ids_of(4, 8)
    assert set(CACHE_NAMES) <= set(model.config.keys_to_ignore_at_inference)
    arguments = TrainingArguments(tmp_path, report_to="none", use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    assert Trainer(model=model, args=arguments).predict(rows).predictions.shape == (4, 8, 32)

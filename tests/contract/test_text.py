"""The language models: what they compute, record, keep, and refuse."""

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from opencrate import (
    CrateForCausalLM,
    CrateForMaskedLM,
    CrateForSequenceClassification,
    CrateTextConfig,
    CrateTextModel,
)
from opencrate._hf import CACHE
from opencrate.cache import SubspaceCache, SubspaceLayer

from .common import ALL_STATES, checkpoint_activations, model_of
from .text import CACHED, FORMS, VARIANTS, ids_of, text_config, text_model

COUNTS = {  # vocabulary 50,304, context 1,024 (BERT 30,522 and 512)
    "gpt-base": 60_699_648,
    "gpt-1-layer": 27_068_928,
    "lm-1-layer": 27_856_384,
    "lm-base": 81_934_848,
    "lm-medium": 203_679_744,
    "lm-large": 419_827_200,
    "lm-xl": 819_792_000,
    "alpha-small": 57_762_816,
    "alpha-base": 110_237_184,
    "bert-base": 45_116_928,
    "laptop": 1_318_912,
    "tiny": 45_824,
}


@pytest.mark.parametrize("size", CrateTextConfig.SIZES)
def test_named_sizes_have_their_counts(size):
    config = CrateTextConfig.from_size(size)
    with torch.device("meta"):
        model = (CrateForCausalLM if config.is_causal else CrateForMaskedLM)(config)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[size]
    assert config.num_attention_heads * config.head_dim == config.hidden_size


def test_initial_values_are_the_forks():
    model = CrateForCausalLM(CrateTextConfig.from_size("gpt-1-layer", vocab_size=2000, num_hidden_layers=2))
    layer = model.crate.layers[0]
    std = {
        "table": model.crate.embeddings.token_embeddings.weight.std(),
        "subspaces": layer.compress.mssa.subspaces.weight.std(),
        "output": layer.compress.mssa.output.weight.std() * 2,
        "dictionary": layer.sparsify.ista.dictionary.std() * 0.02 / (2 / 512) ** 0.5,
    }
    assert {name: pytest.approx(0.02, rel=0.03) for name in std} == {name: value.item() for name, value in std.items()}
    assert layer.sparsify.ista.dictionary.abs().max() <= (6 / 512) ** 0.5
    assert (layer.compress.mssa.output.bias == 0).all()
    assert model.lm_head.weight is model.crate.embeddings.token_embeddings.weight


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("variant", FORMS)
def test_states_are_those_of_the_layers(variant, causal):
    model = text_model(variant, CrateForCausalLM if causal else CrateForMaskedLM)
    ids = ids_of(2, 7)
    with torch.no_grad():
        outputs = model(ids, **ALL_STATES)
        assert len(outputs.hidden_states) == 3 and outputs.projected_states[0].shape == (2, 2, 7, 8)
        for index, layer in enumerate(model.crate.layers):
            half, maps = outputs.compressed_states[index], outputs.attentions[index]
            assert_close(layer.sparsify(half), outputs.hidden_states[index + 1])
            assert_close(maps.sum(-1), torch.ones(2, 2, 7))
            assert ((maps.triu(1) == 0).all() if causal else (maps > 0).all()).item()
            heads = (maps @ outputs.projected_states[index]).transpose(1, 2).flatten(2)
            assert_close(outputs.hidden_states[index] + layer.compress.mssa.output(heads), half)
        assert_close(model.lm_head(model.crate(ids).last_hidden_state), outputs.logits)
    width = 16 if variant == "complete" else 64
    assert outputs.sparse_codes[0].shape == (2, 7, width)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_causal_model_does_not_see_what_follows(variant):
    model, ids = text_model(variant), ids_of(2, 9)
    other = ids.clone()
    other[:, 6] = (other[:, 6] + 1) % 32
    with torch.no_grad():
        change = (model(ids).logits - model(other).logits).abs().amax((0, 2))
        masked = text_model(variant, CrateForMaskedLM)
        both = (masked(ids).logits - masked(other).logits).abs().amax((0, 2))
    assert (change[:6] == 0).all() and (change[6:] > 1e-3).all() and (both > 0).all()


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("variant", ["alpha", "relative bias", "rope", "attention, both", "tssa", "gradient"])
def test_padding_changes_nothing(variant, causal, backend):
    """On the right of any model, on the left of a causal one, whose positions count attended tokens."""
    model = text_model(variant, CrateForCausalLM if causal else CrateForMaskedLM, attn_implementation=backend)
    ids = ids_of(2, 5)
    with torch.no_grad():
        alone = model(ids).logits
        for left in (False, True)[: 1 + causal]:
            padding, ones = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
            parts = [(padding, padding), (ids, ones)] if left else [(ids, ones), (padding, padding)]
            padded, mask = (torch.cat(each, 1) for each in zip(*parts))
            outputs = model(padded, attention_mask=mask, **ALL_STATES)
            assert_close(outputs.logits[:, 3:] if left else outputs.logits[:, :5], alone, atol=1e-5, rtol=1e-5)
            assert all(state.isfinite().all() for name in ALL_STATES for state in outputs[name[7:]])


@pytest.mark.parametrize("length", [1, 3, 9])
def test_padding_changes_nothing_for_representatives(length):
    """Also where there are fewer tokens than representatives, and where those stand for several tokens each."""
    options = {"compression": "cbsa", "compression_options": {"num_representatives": 4}}
    model, ids = text_model("complete", CrateForMaskedLM, **options), ids_of(2, length)
    with torch.no_grad():
        alone = model(ids).logits
        mask = torch.cat((torch.ones(2, length), torch.zeros(2, 5)), 1).long()
        assert_close(model(ids).logits, model(ids, attention_mask=mask[:, :length]).logits, atol=1e-5, rtol=1e-5)
        padded = model(torch.cat((ids, ids_of(2, 5, seed=3)), 1), attention_mask=mask).logits
        assert_close(padded[:, :length], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["overcomplete", "relative bias", "rope"])
def test_packed_documents_do_not_see_each_other(variant, backend):
    model = text_model(variant, attn_implementation=backend)
    first, second = ids_of(1, 5), ids_of(1, 4, seed=2)
    positions = torch.cat((torch.arange(5), torch.arange(4)))[None]
    with torch.no_grad():
        packed = model(torch.cat((first, second), 1), position_ids=positions).logits
        assert_close(packed[:, :5], model(first).logits, atol=1e-5, rtol=1e-5)
        assert_close(packed[:, 5:], model(second).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(packed[:, 5:], model(torch.cat((first, second), 1)).logits[:, 5:], atol=1e-2)


@pytest.mark.parametrize("variant", ["tssa", "gradient"])
def test_operators_that_know_padding_only_refuse_packed_documents(variant):
    model, positions = text_model(variant), torch.cat((torch.arange(5), torch.arange(4)))[None]
    with pytest.raises(ValueError, match=rf"position_ids: compression='{variant}' cannot keep the documents"):
        model(ids_of(1, 9), position_ids=positions)
    with pytest.raises(
        ValueError, match=rf"attention_mask of shape \(1, 1, 9, 9\): compression='{variant}' takes padding"
    ):
        model(ids_of(1, 9), attention_mask=torch.ones(1, 1, 9, 9))
    shifted = model(ids_of(1, 9), position_ids=torch.arange(3, 12)[None]).logits  # one document, later in its text
    assert shifted.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cls", [CrateForCausalLM, CrateForMaskedLM])
def test_every_parameter_gets_a_gradient(variant, cls):
    model, ids = text_model(variant, cls, type_vocab_size=2), ids_of(2, 24)
    loss = model(ids, labels=ids, token_type_ids=(ids > 9).long()).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("variant", ["overcomplete", "relative bias", "rope", "tssa", "gradient"])
def test_gradient_checkpointing_and_dropout(variant):
    model, ids = text_model(variant).train(), ids_of(2, 8)
    model(ids, labels=ids).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    checkpoint_activations(model)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name])
    dropping = text_model(variant, dropout=0.5)
    assert_close(dropping(ids).logits, text_model(variant)(ids).logits)
    dropping.train()
    assert not torch.equal(dropping(ids).logits, dropping(ids).logits)


def test_penalties_join_the_loss():
    ids = ids_of(2, 8)
    plain, penalised = (text_model(subspace_penalty=w, dictionary_penalty=w) for w in (0.0, 0.1))
    assert penalised(ids, labels=ids).loss > plain(ids, labels=ids).loss + 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_saving_and_loading(variant, tmp_path):
    model, ids = text_model(variant), ids_of(2, 6)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, CrateForCausalLM) and loaded.config.is_causal
    assert_close(loaded(ids).logits, model(ids).logits)
    assert loaded.lm_head.weight is loaded.crate.embeddings.token_embeddings.weight
    assert_close(CrateTextModel.from_pretrained(tmp_path)(ids).last_hidden_state, model.crate(ids).last_hidden_state)


def test_a_larger_vocabulary():
    model, ids = text_model(), ids_of(1, 6)
    before = model(ids).logits
    model.resize_token_embeddings(40)
    assert model.config.vocab_size == 40 and model.lm_head.weight is model.get_input_embeddings().weight
    assert_close(model(ids).logits[..., :32], before)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["overcomplete", "relative bias", "rope", "tssa", "gradient"])
def test_compiled_forward_is_the_same(variant):
    model, ids = text_model(variant), ids_of(2, 8)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert_close(compiled(ids, use_cache=False).logits, model(ids).logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16(variant):
    """By autocast, and of weights that are bfloat16 themselves."""
    model, ids = text_model(variant), ids_of(2, 8)
    with torch.no_grad():
        expected = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(ids).logits
        half = model.to(torch.bfloat16)(ids).logits
    scale = expected.abs().max().item()
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        assert_close(found.float(), expected, rtol=0, atol=0.05 * scale)


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("variant", CACHED)
def test_logits_with_a_cache_equal_those_without(variant, dtype, tolerance):
    model, ids = text_model(variant, dtype=dtype), ids_of(3, 20)
    with torch.no_grad():
        whole, cache, pieces = model(ids).logits, None, []
        for piece in ids.split([7, 1, 4, 1, 1, 6], dim=1):
            outputs = model(piece, use_cache=True, **{CACHE: cache})
            cache = outputs[CACHE]
            pieces.append(outputs.logits)
    assert isinstance(cache, SubspaceCache) and cache.get_seq_length() == 20
    scale = max(1, whole.abs().max().item())
    assert_close(torch.cat(pieces, 1), whole, atol=tolerance * scale, rtol=0)


def cache_bytes(cache) -> int:
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def test_the_cache_is_half_of_gpt2s():
    ids = ids_of(2, 9)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=24, n_embd=16, n_layer=2, n_head=2)).eval()
    with torch.no_grad():
        theirs = gpt2(ids, use_cache=True)[CACHE]
        for variant in FORMS:
            ours = text_model(variant)(ids, use_cache=True)[CACHE]
            assert 2 * cache_bytes(ours) == cache_bytes(theirs) == 2 * 2 * 2 * 9 * 16 * 4
            room = sum(states.untyped_storage().nbytes() for layer in ours.layers for states in layer._room)
            assert room == cache_bytes(ours)


def test_gradients_flow_through_a_cache():
    model, ids = text_model("alpha"), ids_of(2, 10)
    first = model(ids[:, :6], use_cache=True)
    second = model(ids[:, 6:], **{CACHE: first[CACHE]})
    torch.cat((first.logits, second.logits), 1).square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(ids).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert_close(grads[name], parameter.grad, atol=1e-3, rtol=1e-3)


def test_the_caches_room_grows_and_is_replaced():
    """What transformers' strategies do to a cache between updates: crop, reorder, select, repeat, reset, copy."""
    states = torch.randn(2, 3, 40, 4)
    none = states[..., :0]
    layer = SubspaceLayer(capacity=6)
    for start, stop in ((0, 4), (4, 6), (6, 7), (7, 8)):
        keys, values = layer.update(states[..., start:stop, :], none[..., start:stop, :])
        assert torch.equal(keys, states[..., :stop, :]) and values.shape == (2, 3, stop, 0)
    assert layer._room[0].shape[-2] == 9  # 6, then half as much again
    twin = copy.deepcopy(layer)
    layer.crop(-3)
    assert torch.equal(layer.update(states[..., :1, :], none[..., :1, :])[0][..., 4:, :], states[..., [4, 0], :])
    assert torch.equal(twin.keys, states[..., :8, :])  # a copy has room of its own
    twin.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(twin.update(states[..., 8:9, :], none[..., 8:9, :])[0][0, :, :8], states[1, :, :8])
    twin.batch_select_indices(torch.tensor([0]))
    twin.batch_repeat_interleave(3)
    assert twin.update(states[:1, :, :1].expand(3, -1, -1, -1), none[:1, :, :1].expand(3, -1, -1, -1))[0].shape[2] == 10
    twin.reset()
    assert twin.get_seq_length() == 0
    assert torch.equal(twin.update(states[..., :2, :], none[..., :2, :])[0], states[..., :2, :])


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"input_ids": torch.tensor([[1, 32]])}, r"input_ids go from 1 to 32, .* ids from 0 to 31"),
        ({"input_ids": torch.tensor([[-1, 3]])}, "input_ids go from -1 to 3"),
        ({"input_ids": ids_of(1, 25)}, "25 tokens are more than the context of 24"),
        ({"input_ids": ids_of(1, 2), "position_ids": torch.tensor([[0, 24]])}, "position_ids go from 0 to 24"),
        ({"input_ids": ids_of(1, 2), "token_type_ids": torch.tensor([[0, 1]])}, "token_type_ids go from 0 to 1"),
        ({}, "give input_ids or inputs_embeds"),
        ({"input_ids": ids_of(1, 2), "inputs_embeds": torch.ones(1, 2, 16)}, "one of the two"),
        ({"input_ids": ids_of(1, 2), "output_hiden_states": True}, "did you mean 'output_hidden_states'"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(ValueError, match=message):
        text_model()(**inputs)


def test_a_cache_filled_to_the_context():
    model = text_model()
    cache = model(ids_of(1, 24), use_cache=True)[CACHE]
    with pytest.raises(ValueError, match="25 tokens are more than the context of 24"):
        model(ids_of(1, 1), **{CACHE: cache})
    with pytest.raises(ValueError, match="only a causal model has a cache"):
        text_model(cls=CrateForMaskedLM)(ids_of(1, 1), **{CACHE: SubspaceCache(model.config)})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 0}, "CrateTextConfig: vocab_size=0 is not allowed; it must be a whole number of at least 1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0"),
        ({"type_vocab_size": -1}, "type_vocab_size=-1"),
        ({"dropout": 1.0}, "dropout=1.0 .* below 1"),
        ({"classifier_dropout": 1.0}, "classifier_dropout=1.0"),
        ({"pad_token_id": 32}, "pad_token_id=32 .* below vocab_size 32"),
        ({"is_causal": True, "compression_kappa": 1.0}, "compression_kappa=1.0 .* null in a causal model"),
        ({"image_size": 32}, "unknown argument 'image_size'"),
        ({"vocab_sise": 32}, "did you mean 'vocab_size'"),
        ({"hidden_size": 15}, "not a multiple of num_attention_heads"),
    ],
)
def test_configurations_that_cannot_be_built(changes, message):
    with pytest.raises(ValueError, match=message):
        text_config(**changes)


def test_directions_do_not_mix(tmp_path):
    text_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is_causal=True in the configuration, but CrateForMaskedLM needs False"):
        CrateForMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is_causal=False .* CrateForCausalLM needs True"):
        CrateForCausalLM(text_config(is_causal=False))
    with pytest.raises(ValueError, match="null in a causal model"):
        CrateForCausalLM(text_config(compression_kappa=1.0))
    assert CrateForSequenceClassification.from_pretrained(tmp_path).config.is_causal


def test_a_vision_checkpoint_given_as_text(tmp_path):
    model_of().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type='crate' is not a CRATE text model"):
        CrateForCausalLM.from_pretrained(tmp_path)


def test_unknown_sizes():
    with pytest.raises(ValueError, match=r"unknown CrateTextConfig size 'gpt-bas'; did you mean 'gpt-base'\?"):
        CrateTextConfig.from_size("gpt-bas")

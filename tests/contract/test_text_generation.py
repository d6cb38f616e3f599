"""Every strategy of ``generate`` on the causal models, with and without a cache, within the context and beyond it."""

import pytest
import torch
from torch.testing import assert_close
from transformers import StaticCache

from opencrate._hf import CACHE
from opencrate.cache import SubspaceCache

from .text import CACHED, FORMS, ids_of, text_model

NEW = 8
ONE_TENSOR = (*FORMS, "relative bias", "rope")
UNCACHED = ("tssa", "gradient")


def talker(variant, **changes):
    """A model that says more than one token again and again, which would hide mistakes."""
    return text_model(variant, seed=0 if variant in FORMS else 6, **changes)


def generated(model, ids, **settings):
    return model.generate(ids, **{"max_new_tokens": NEW, "do_sample": False, **settings})


def naive_greedy(model, ids, steps: int = NEW):
    """Greedy decoding that computes the whole context anew for each token."""
    for _ in range(steps):
        with torch.no_grad():
            ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    return ids


@pytest.mark.parametrize("variant", ONE_TENSOR)
def test_greedy_by_every_way_of_keeping_the_past(variant):
    model, ids = talker(variant), ids_of(2, 6)
    expected = naive_greedy(model, ids)
    assert len(expected[:, 6:].unique()) > 2  # a model that repeats one token would hide mistakes
    given = SubspaceCache(model.config)
    ways = [
        {},
        {"use_cache": False},
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "static"},
        {CACHE: StaticCache(config=model.config, max_cache_len=14)},
        {CACHE: given},
        {"prompt_lookup_num_tokens": 3},
    ]
    for settings in ways:
        rows = [ids[:1], ids[1:]] if "prompt_lookup_num_tokens" in settings else [ids]  # one text at a time there
        assert torch.equal(torch.cat([generated(model, row, **settings) for row in rows]), expected), settings
    assert given.get_seq_length() == 13
    assert torch.equal(generated(model, expected, **{CACHE: given}, max_new_tokens=3), naive_greedy(model, ids, 11))


@pytest.mark.parametrize("variant", UNCACHED)
def test_operators_without_a_cache_read_the_text_again(variant):
    model, ids = talker(variant), ids_of(2, 6)
    expected = naive_greedy(model, ids)
    assert len(expected[:, 6:].unique()) > 2
    for settings in ({}, {"use_cache": True}, {"cache_implementation": "static"}):
        assert torch.equal(generated(model, ids, **settings), expected), settings
    with pytest.raises(ValueError, match=rf"compression='{variant}' uses none"):
        model(ids, **{CACHE: text_model("complete")(ids, use_cache=True)[CACHE]})


@pytest.mark.parametrize("variant", ["complete", "relative bias", "rope"])
def test_the_cache_is_of_the_right_size_at_once(variant):
    model, ids = talker(variant), ids_of(2, 6)
    cache = generated(model, ids, return_dict_in_generate=True)[CACHE]
    assert isinstance(cache, SubspaceCache) and cache.layers[0]._room[0].shape == (2, 2, 13, 8)
    static = StaticCache(config=model.config, max_cache_len=14)
    generated(model, ids, **{CACHE: static})
    assert all(layer.values.numel() == 0 and layer.keys.shape == (2, 2, 14, 8) for layer in static.layers)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", [*CACHED, *UNCACHED])
def test_left_padding_equals_no_padding(variant, backend):
    model = talker(variant, attn_implementation=backend)
    long, short = ids_of(1, 7), ids_of(1, 4, seed=2)
    batch = torch.cat((long, torch.cat((torch.zeros(1, 3, dtype=torch.long), short), 1)))
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    for settings in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        both = generated(model, batch, attention_mask=mask, pad_token_id=0, **settings)[:, 7:]
        assert torch.equal(both[0], generated(model, long)[0, 7:]), settings
        assert torch.equal(both[1], generated(model, short)[0, 4:]), settings


@pytest.mark.parametrize("variant", ["overcomplete", "relative bias", "rope", "gradient"])
def test_beam_scores_are_the_log_probabilities(variant):
    model, ids = talker(variant), ids_of(2, 5)
    settings = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
    beams = generated(model, ids, output_scores=True, return_dict_in_generate=True, **settings)
    with torch.no_grad():
        logits = model(beams.sequences, use_cache=False).logits.log_softmax(-1)
    each = logits[:, :-1].gather(-1, beams.sequences[:, 1:, None])[..., 0]
    assert_close(each[:, 4:].sum(1), beams.sequences_scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(generated(model, ids, use_cache=False, **settings), beams.sequences)
    greedy = model(naive_greedy(model, ids), use_cache=False).logits.log_softmax(-1)[:, :-1]
    best = greedy.gather(-1, naive_greedy(model, ids)[:, 1:, None])[:, 4:, 0].sum(1)
    assert (beams.sequences_scores.view(2, 3).max(1).values >= best - 1e-4).all()


def test_sampling_does_not_depend_on_the_cache():
    model, ids = text_model("alpha"), ids_of(2, 6)
    out = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        out.append(generated(model, ids, do_sample=True, top_k=10, temperature=0.9, use_cache=use_cache))
    assert torch.equal(*out)
    several = generated(model, ids, do_sample=True, num_return_sequences=4)
    assert several.shape == (8, 14) and len({tuple(row.tolist()) for row in several[:4]}) > 1


def test_logits_to_keep():
    model, ids = text_model(), ids_of(2, 6)
    with torch.no_grad():
        whole = model(ids).logits
        assert_close(model(ids, logits_to_keep=2).logits, whole[:, -2:])
        assert_close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, whole[:, [1, 4]])


# --- beyond the context of 24 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length, settings",
    [
        (20, {"max_new_tokens": 6}),
        (30, {"max_new_tokens": 1}),
        (20, {"max_length": 26, "max_new_tokens": None}),
        (20, {"max_new_tokens": 6, "context_overflow": "error"}),
        (20, {"max_new_tokens": 6, "context_overflow": "crop", "prompt_lookup_num_tokens": 2}),
    ],
)
def test_too_long_is_an_error_before_anything_is_generated(length, settings):
    model = text_model()
    model.forward = None  # nothing may be computed
    message = r"take up to (25|30) positions, more than the context of 24 \(max_position_embeddings\): shorten"
    with pytest.raises(ValueError, match=message):
        generated(model, ids_of(1, length), **settings)


def test_the_last_token_needs_no_position():
    assert generated(text_model(), ids_of(1, 20), max_new_tokens=5).shape == (1, 25)
    padded = torch.cat((torch.zeros(1, 10, dtype=torch.long), ids_of(1, 18)), 1)  # padding takes no position
    mask = (torch.arange(28) >= 10).long()[None]
    out = generated(text_model(), padded, attention_mask=mask, max_new_tokens=7, pad_token_id=0)
    assert torch.equal(out[:, 28:], generated(text_model(), ids_of(1, 18), max_new_tokens=7)[:, 18:])


@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("length, variant", [(20, "overcomplete"), (30, "overcomplete"), (20, "relative bias")])
def test_cropping_keeps_the_last_tokens(length, variant, settings):
    model = talker(variant)
    ids = expected = ids_of(2, length)
    for _ in range(NEW):
        with torch.no_grad():
            following = model(expected[:, -24:], use_cache=False).logits[:, -1:].argmax(-1)
        expected = torch.cat((expected, following), 1)
    assert torch.equal(generated(model, ids, context_overflow="crop", **settings), expected)
    model.config.context_overflow = "crop"
    assert torch.equal(generated(model, ids, **settings), expected)
    beams = generated(model, ids, num_beams=2, **settings)
    assert beams.shape == expected.shape


def test_unknown_words():
    with pytest.raises(ValueError, match="context_overflow='slide' is not allowed"):
        generated(text_model(), ids_of(1, 4), context_overflow="slide")
    with pytest.raises(ValueError, match="max_new_token"):
        text_model().generate(ids_of(1, 4), max_new_token=3)

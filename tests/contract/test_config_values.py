"""Every field of every configuration against values that nobody means, as an argument and from a saved folder."""

import dataclasses
import json
import math
import time

import pytest
from transformers import AutoConfig

from opencrate import CrateConfig, CrateForCausalLM, CrateMAEConfig, CrateTextConfig
from opencrate._memory import numbers_in, require_memory
from opencrate.configuration_crate_blocks import _field_types

from ..bad_values import NOT_FINITE, NOT_IN_RANGE, complaint, holds, thinned

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALLEST = {
    CrateConfig: {**SMALL, "image_size": 8, "patch_size": 4},
    CrateMAEConfig: {**SMALL, "image_size": 8, "patch_size": 4},
    CrateTextConfig: {**SMALL, "vocab_size": 50, "max_position_embeddings": 16},
}


def cases(cls):
    """(field, value, whether it has to be refused)."""
    types = _field_types(cls)
    names = {item.name for item in dataclasses.fields(cls) if item.name[0] != "_"} | {"num_labels"}
    for name in sorted(names):
        hint = types.get(name, object)
        number = holds(hint, int, float) and not holds(hint, dict)
        for value in (*NOT_IN_RANGE, *NOT_FINITE, *((1.5,) if not holds(hint, float) else ())):
            lists = isinstance(value, list) and value in ([], [None]) and holds(hint, list)
            yield name, value, number and not lists and not (value is None and holds(hint, type(None)))


ALL = [(cls, *case) for cls in SMALLEST for case in cases(cls)]


@pytest.mark.parametrize("cls", SMALLEST)
def test_no_field_takes_nonsense(cls):
    for name, value, refused in cases(cls):
        check(lambda name=name, value=value: cls(**SMALLEST[cls] | {name: value}), name, value, refused)


def check(build, name, value, refused):
    try:
        build()
    except ValueError as error:
        assert complaint(str(error)) is None, (name, value, str(error))
        if refused:
            assert name in str(error) and "must be" in str(error)
    else:
        assert not refused, (name, value)


@pytest.mark.parametrize("cls", SMALLEST)
def test_a_field_is_checked_when_it_is_set_later(cls):
    config = cls(**SMALLEST[cls])
    with pytest.raises(ValueError, match=rf"{cls.__name__}: hidden_size=-1 is not allowed; it must be a whole number"):
        config.hidden_size = -1
    assert config.hidden_size == 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("torch_dtype", word) for word in ("../x", "nn", "float8_e4m3fn", "int8", "", 3)),
        *(("dtype", word) for word in ("../x", "int64", [])),
        *(("id2label", labels) for labels in ({"a": "x"}, {"0": "x", "2": "y"}, {"0": 1}, [], "x", {"9" * 5000: "x"})),
        *(("num_labels", number) for number in (-1, 10**9, 1.5, "x", None)),
        ("label2id", 3),
        ("architectures", "Nope"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_fields_that_every_model_has(field, value, tmp_path):
    saved = CrateConfig(**SMALLEST[CrateConfig]).to_dict() | {field: value}
    if field in ("torch_dtype", "num_labels"):
        saved = {name: item for name, item in saved.items() if name not in ("dtype", "id2label", "label2id")}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError) as caught:
        AutoConfig.from_pretrained(tmp_path)
    assert complaint(str(caught.value), field.removeprefix("torch_")) is None, str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        CrateTextConfig(num_hidden_layers=4096, hidden_size=12 * 1024),
        CrateTextConfig(hidden_size=2**20, head_dim=64),
        CrateTextConfig(hidden_size=2**20, num_attention_heads=2, dictionary_expansion=1024, dictionary_decode="tied"),
        CrateTextConfig(vocab_size=10**7, hidden_size=3 * 2**14),
    ],
    ids=["layers", "width", "everything", "vocabulary"],
)
def test_what_no_memory_holds_is_refused_before_it_is_built(config):
    start = time.process_time()
    with pytest.raises(ValueError, match=r"x: this model takes [\d,.]+ GiB of memory, and [\d,.]+ GiB are free"):
        require_memory(config, CrateForCausalLM, "x")
    assert time.process_time() - start < 5


def test_numbers_are_counted_without_building():
    from opencrate import CrateForImageClassification, CrateMAEForPreTraining

    for cls, config in (
        (CrateForCausalLM, CrateTextConfig(**SMALLEST[CrateTextConfig] | {"num_hidden_layers": 5})),
        (CrateForImageClassification, CrateConfig(**SMALLEST[CrateConfig] | {"num_hidden_layers": 4})),
        (CrateMAEForPreTraining, CrateMAEConfig(**SMALLEST[CrateMAEConfig], decoder_num_hidden_layers=4)),
        (
            CrateMAEForPreTraining,
            CrateMAEConfig(**SMALLEST[CrateMAEConfig] | {"num_hidden_layers": 3}, tie_decoder=True),
        ),
    ):
        model = cls(config)
        assert numbers_in(config, cls) == sum(value.numel() for value in (*model.parameters(), *model.buffers()))


def test_the_cases_are_many_and_every_value_is_among_a_thinned_part():
    assert len(ALL) > 2000
    assert {str(value) for *_, value, _ in thinned(ALL, 150)} == {str(value) for *_, value, _ in ALL}
    assert any(isinstance(value, float) and math.isnan(value) for *_, value, _ in ALL)


TSSA, CBSA, GRADIENT = ({"compression": name} for name in ("tssa", "cbsa", "gradient"))


@pytest.mark.parametrize(
    ("cls", "changes", "words"),
    [
        (CrateConfig, {"position": "relative"}, ["position='relative'", "one of 'absolute', 'relative_bias'"]),
        (CrateConfig, {**TSSA, "position": "rope"}, ["position='rope'", "'absolute' or 'none'", "compression='tssa'"]),
        (CrateTextConfig, {**GRADIENT, "position": "both"}, ["position='both'", "compression='gradient'"]),
        (CrateConfig, {"position": "rope", "head_dim": 6}, ["position='rope'", "head_dim=6", "multiple of 4"]),
        (CrateTextConfig, {"position": "rope", "head_dim": 5}, ["head_dim=5", "multiple of 2"]),
        (CrateConfig, {"position": "rope", "rotary_base": 0}, ["rotary_base=0", "a number of at least"]),
        (CrateConfig, {"ista_step": "bound"}, ["ista_step='bound'", "'fixed'", "'bounded'"]),
        (CrateConfig, {"ista_step": "bounded", "ista_step_size": 2}, ["ista_step_size=2", "below 2"]),
        (CrateConfig, {"learned_steps": "token"}, ["learned_steps='token'", "'none', 'layer', 'atom'"]),
        (CrateConfig, {"learned_steps": "layer", "ista_lambda": 0}, ["ista_lambda=0", "above 0"]),
        (CrateConfig, {"ista_start": "positive", "dictionary_expansion": 2}, ["ista_start='positive'", "'zero'"]),
        (CrateConfig, {**TSSA, "compression_options": {"bias": True}}, ["compression_options", "'bias'"]),
        (CrateConfig, {**CBSA, "compression_options": {"pool": 3}}, ["compression_options.pool", "'patches'"]),
        (
            CrateConfig,
            {**CBSA, "compression_options": {"num_representatives": 0}},
            ["num_representatives", "at least 1"],
        ),
        (CrateConfig, {**GRADIENT, "compression_options": {"max_step": 2}}, ["max_step", "at most 1.9"]),
        (CrateConfig, {**GRADIENT, "compression_options": {"start": 0}}, ["compression_options.start", "at least"]),
        (CrateConfig, {**GRADIENT, "compression_options": {"start": float("nan")}}, ["compression_options.start"]),
        (CrateConfig, {**GRADIENT, "compression_kappa": 1}, ["compression_kappa=1", "null"]),
        (CrateTextConfig, {**CBSA, "is_causal": True}, ["compression='cbsa'", "causal model"]),
        (CrateConfig, {"compression": "tsa"}, ["compression='tsa'", "tssa"]),
        (CrateConfig, {**TSSA, "compression_options": {"position_bias": True}}, ["position_bias", "for texts"]),
        (CrateConfig, {**CBSA, "compression_options": {"num_representatives": 5}}, ["num_representatives=5", "4 or 9"]),
    ],
)
def test_fields_of_positions_operators_and_steps(cls, changes, words):
    """Where a value cannot be built; of the last two, the model says so."""
    from opencrate import CrateModel

    with pytest.raises(ValueError) as caught:
        CrateModel(cls(**SMALLEST[cls] | changes))
    line = str(caught.value)
    assert complaint(line) is None and all(word in line for word in words), line

"""One traced graph of a text model serves every batch and length, with padding and positions, in every head."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from opencrate import (
    CrateForCausalLM,
    CrateForMaskedLM,
    CrateForMultipleChoice,
    CrateForQuestionAnswering,
    CrateForSequenceClassification,
    CrateForTokenClassification,
    CrateTextModel,
)
from opencrate._hf import CACHE

from .text import ids_of, text_model


class First(nn.Module):
    """A model's first output, from ids, a mask and what the traced arguments name besides."""

    def __init__(self, model: nn.Module, *names: str):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs)))[0]


def inputs_of(names: tuple[str, ...], batch: int, length: int, choices: bool) -> tuple[Tensor, ...]:
    """Ids, a mask with padding on the right of the first row, positions, segments, embeddings."""
    ids = ids_of(batch, length)
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(length).flip(0).expand(batch, -1).clone(),
        "token_type_ids": ids % 2,
        "inputs_embeds": torch.randn(batch, length, 16),
    }
    made["attention_mask"][0, -2:] = 0
    return tuple(torch.stack((made[name], made[name]), 1) if choices else made[name] for name in names)


CASES = [
    (CrateForCausalLM, True, ("input_ids", "attention_mask")),
    (CrateForMaskedLM, False, ("input_ids", "attention_mask", "position_ids", "token_type_ids")),
    (CrateForSequenceClassification, True, ("input_ids", "attention_mask")),
    (CrateForMultipleChoice, False, ("input_ids", "attention_mask")),
]
MORE = [
    (CrateForCausalLM, True, ("inputs_embeds",)),
    (CrateForMaskedLM, False, ("inputs_embeds", "attention_mask")),
    (CrateTextModel, True, ("input_ids", "position_ids", "token_type_ids")),
    (CrateForSequenceClassification, False, ("input_ids",)),
    (CrateForTokenClassification, False, ("input_ids", "attention_mask")),
    (CrateForQuestionAnswering, False, ("input_ids", "attention_mask")),
]


@pytest.mark.parametrize(
    "backend, cls, causal, names",
    [
        *(("sdpa", *case) for case in CASES),
        *(pytest.param("sdpa", *case, marks=pytest.mark.slow) for case in MORE),
        *(pytest.param("eager", *case, marks=pytest.mark.slow) for case in (*CASES, *MORE)),
    ],
)
def test_exported_program_equals_the_model_at_another_size(backend, cls, causal, names):
    choices = cls is CrateForMultipleChoice
    changes = {"is_causal": causal, "type_vocab_size": 2, "attn_implementation": backend, "num_hidden_layers": 1}
    model = First(text_model("overcomplete", cls, **changes), *names)
    with torch.no_grad():
        free = {0: Dim("batch"), (2 if choices else 1): Dim("length")}
        program = export(model, inputs_of(names, 2, 7, choices), dynamic_shapes=((free,) * len(names),)).module()
        for batch, length in ((2, 7), (5, 24), (3, 4)):
            inputs = inputs_of(names, batch, length, choices)
            torch.testing.assert_close(program(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def test_a_causal_model_is_exported_as_it_is():
    """Without a wrapper: with the cache that it would return by default."""
    model, free = text_model("complete", CrateForCausalLM, num_hidden_layers=1), {0: Dim("batch"), 1: Dim("length")}
    with torch.no_grad():
        program = export(model, (), {"input_ids": ids_of(2, 7)}, dynamic_shapes={"input_ids": free}).module()
        found, expected = (one(input_ids=ids_of(3, 11)).logits for one in (program, model))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert model(input_ids=ids_of(2, 7))[CACHE] is not None


@pytest.mark.parametrize("position", ["relative_bias", "rope", "both"])
@pytest.mark.parametrize(("cls", "causal"), [(CrateForCausalLM, True), (CrateForMaskedLM, False)])
def test_positions_inside_the_attention_are_exported_for_every_length(cls, causal, position):
    """Two tokens too, and a bias that is not what it is at first."""
    model = text_model("complete", cls, is_causal=causal, position=position, num_hidden_layers=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_bias" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
        free = {0: Dim("batch"), 1: Dim("length")}
        program = export(model, (), {"input_ids": ids_of(2, 7)}, dynamic_shapes={"input_ids": free}).module()
        for length in (2, 3, 11):
            found, expected = (one(input_ids=ids_of(3, length)).logits for one in (program, model))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

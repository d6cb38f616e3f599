"""The converted CRATE classifier against numbers from the published code, tensor by tensor."""

import pytest
import torch

from tests.golden import load_golden

from .common import compare, converted, gradients, losses, present, record, state_tensors

SET, FAMILY = "crate_classifier", "crate"
DTYPES = [torch.float32, torch.float64]
FORWARD = ["layernorm_eps_probe", "main", "nonsquare_mean_pool", "rect_patch_gray"]


def test_every_golden_file_is_covered():
    assert present(SET) == sorted([*FORWARD, "interpolated_positions"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("file", FORWARD)
def test_forward_and_gradients(file, dtype, attention):
    golden = load_golden(SET, file)
    model = converted(SET, file, FAMILY, dtype, attn_implementation=attention)
    assert model.dtype == dtype and model.config._attn_implementation == attention
    outputs = record(model, golden["images"])
    computed = state_tensors(model, golden["images"], outputs)
    if "labels" in golden:
        computed |= losses(outputs.logits, golden["labels"])
        loss = model(golden["images"].to(dtype), labels=golden["labels"]).loss
        torch.testing.assert_close(loss[None], computed["loss_ce"]())
        computed |= gradients(model, loss, FAMILY)
    compare(f"{SET}/{file} {dtype} {attention}", golden, computed, inputs=["images", "labels"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_interpolated_positions_of_the_published_visualisation(dtype, attention):
    golden = load_golden(SET, "interpolated_positions")
    overrides = {"position_interpolation": "scale", "attn_implementation": attention}
    model = converted(SET, "main", FAMILY, dtype, **overrides)
    table = model.crate.embeddings.position_embeddings.detach().clone()
    computed = {}
    for name, grid in (("native", (8, 8)), ("larger", (12, 12))):
        images = golden[f"{name}.images"]
        outputs = record(model, images)
        last = outputs.projected_states[-1], outputs.attentions[-1]
        positions = model.crate.embeddings.positions(grid)
        computed |= {
            f"{name}.pos_embedding": lambda x=positions: x,
            f"{name}.key": lambda x=last[0]: x.transpose(1, 2).flatten(2),
            f"{name}.attention": lambda x=last[1]: x,
            f"{name}.attention_cls_row": lambda x=last[1]: x[:, :, 0],
            f"{name}.logits": lambda x=outputs.logits: x,
        }
    compare(f"{SET}/interpolated_positions {dtype}", golden, computed, inputs=["native.images", "larger.images"])
    assert torch.equal(model.crate.embeddings.position_embeddings, table)

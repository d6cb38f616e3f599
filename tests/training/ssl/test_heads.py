"""The heads against DINO's published outputs, and their parts."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from opencrate.training.ssl import ProjectionHead, Projector
from opencrate.training.ssl.heads import GlobalBatchNorm, drop_gradients

from ...golden import golden_meta, load_golden, sub_dict
from .common import views

NAMES = {
    "last_layer.weight_g": "last_layer.parametrizations.weight.original0",
    "last_layer.weight_v": "last_layer.parametrizations.weight.original1",
}


@pytest.mark.parametrize("file", ["head_default", "head_learned_last"])
def test_published_heads(file):
    golden, config = (
        load_golden("dino_extra", file),
        golden_meta("dino_extra")["files"][f"{file}.safetensors"]["config"],
    )
    head = ProjectionHead(
        config["in_dim"],
        config["hidden_dim"],
        config["bottleneck_dim"],
        config["nlayers"],
        config["out_dim"],
        config.get("norm_last_layer", True),
    ).double()
    state = sub_dict(golden, "state_dict.")
    head.load_state_dict({NAMES.get(name, name): value for name, value in state.items()})
    unit = F.normalize(head.mlp(golden["input"].double()), dim=-1)
    ours = {
        "bottleneck_normalised": unit,
        "output": head(golden["input"].double()),
        "effective_last_layer_weight": head.last_layer.weight,
    }
    for name, value in ours.items():
        error = ((value - golden[name]).norm() / golden[name].norm()).item()
        assert value.shape == golden[name].shape and error <= 1e-6, (name, error)
    assert head.last_parameters()[0].requires_grad == (not config.get("norm_last_layer", True))


def test_simdino_head_ends_at_the_unit_bottleneck():
    head = ProjectionHead(5, 7, 4)
    z = head(views(2, 3, 5, dtype=torch.float32))
    assert z.shape == (2, 3, 4) and head.last_parameters() == []
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        z = head(views(2, 3, 5, dtype=torch.float32))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(2, 3))


def test_norm_of_the_last_layer_stays():
    head = ProjectionHead(5, 7, 4, out=6)
    optimizer = torch.optim.SGD([one for one in head.parameters() if one.requires_grad], 10.0)
    head(views(1, 3, 5, dtype=torch.float32)).square().sum().backward()
    before = head.last_layer.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(head.last_layer.weight, before)
    torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(6))


def test_frozen_last_layer():
    head = ProjectionHead(5, 7, 4, out=6, norm_last_layer=False)
    head(views(1, 3, 5, dtype=torch.float32)).square().sum().backward()
    drop_gradients(head.last_parameters())
    frozen = {name for name, value in head.named_parameters() if value.grad is None}
    assert frozen == set(NAMES.values())


def test_layers():
    kinds = [type(part) for part in Projector(5, 7, 4, layers=3).mlp]
    assert kinds == [nn.Linear, GlobalBatchNorm, nn.ReLU] * 2 + [nn.Linear]
    assert [type(part) for part in ProjectionHead(5, layers=1).mlp] == [nn.Linear]
    kinds = [type(part) for part in ProjectionHead(5, 7, 4, layers=2, batch_norm=True).mlp]
    assert kinds == [nn.Linear, GlobalBatchNorm, nn.GELU, nn.Linear]


def test_no_bias_before_batch_normalisation():
    """It would have no gradient but rounding noise; without the normalisation, and at the end, there is one."""
    names = [name for name, _ in Projector(5, 7, 4, layers=3).named_parameters() if name.endswith("bias")]
    assert names == ["mlp.1.bias", "mlp.4.bias", "mlp.6.bias"], "of the two normalisations, and of the last map"
    assert all(part.bias is not None for part in ProjectionHead(5, 7, 4).mlp if isinstance(part, nn.Linear))


def test_start():
    """Keyed by torch's global generator; truncated normal with standard deviation 0.02, biases 0."""
    torch.manual_seed(3)
    head = ProjectionHead(64, 256, 64, out=512)
    torch.manual_seed(3)
    again = ProjectionHead(64, 256, 64, out=512)
    assert all(torch.equal(one, other) for one, other in zip(head.parameters(), again.parameters()))
    for name, value in head.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        elif not name.endswith("original0"):
            assert value.std().item() == pytest.approx(0.02, rel=0.05), name


def test_teacher_is_a_deep_copy():
    head = ProjectionHead(5, 7, 4, out=6)
    twin, x = copy.deepcopy(head), views(1, 3, 5, dtype=torch.float32)
    assert torch.equal(head(x), twin(x))
    nn.init.zeros_(twin.mlp[0].weight)
    assert head.mlp[0].weight.any()


def test_batch_normalisation_is_torchs():
    ours, theirs, x = GlobalBatchNorm(6), nn.BatchNorm1d(6), 2 + views(4, 5, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).view_as(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x.flatten(0, 1)).view_as(x))
    assert ours(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [{"hidden": 0}, {"layers": 0}, {"bottleneck": -1}, {"out": 0}, {"out": True}])
def test_sizes(size):
    name, value = next(iter(size.items()))
    with pytest.raises(ValueError, match=f"{name} must be a whole number from 1, got {value}"):
        ProjectionHead(5, **size)
    assert math.prod(Projector(5, 3, 2)(torch.ones(4, 5)).shape) == 8

"""The converted CRATE-alpha classifier against numbers from the published code, tensor by tensor."""

import pytest
import torch

from opencrate.operators import ista
from tests.golden import FIXTURES, golden_root, load_golden

from .common import compare, converted, gradients, losses, present, record, state_tensors

SET, FAMILY = "crate_alpha", "crate_alpha"
FILES = present(SET)  # the committed fixtures have nonsquare only: the others' weights alone are 300 kB


def test_every_golden_file_is_covered():
    left_out = {"layernorm_eps_probe", "main"} if golden_root() == FIXTURES else set()
    assert set(FILES) == {"layernorm_eps_probe", "main", "nonsquare"} - left_out


def test_layer_norm_eps_is_the_familys():
    model = converted(SET, "nonsquare", FAMILY, torch.float32)
    eps = {name: m.eps for name, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert eps.pop("norm") == 1e-5
    assert len(eps) == 2 * model.config.num_hidden_layers and set(eps.values()) == {1e-6}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("file", FILES)
def test_forward_and_gradients(file, dtype, attention):
    golden = load_golden(SET, file)
    images = golden["images"] if "images" in golden else load_golden(SET, "main")["images"]
    model = converted(SET, file, FAMILY, dtype, attn_implementation=attention)
    outputs = record(model, images)
    computed = state_tensors(model, images, outputs)
    layer = model.crate.layers[0].sparsify
    code1 = ista(layer.norm(outputs.compressed_states[0]), layer.ista.dictionary, 0.1, 0.1, num_steps=1)
    grid = model.config.grid_size
    patches = computed["patches_embedded"]
    computed |= {"layer0.code1": lambda: code1, "patch_conv": lambda: patches().transpose(1, 2).unflatten(2, grid)}
    if "labels" in golden:
        computed |= losses(outputs.logits, golden["labels"])
        loss = model(images.to(dtype), labels=golden["labels"]).loss
        computed |= gradients(model, loss, FAMILY)
    compare(f"{SET}/{file} {dtype} {attention}", golden, computed, inputs=["images", "labels"])

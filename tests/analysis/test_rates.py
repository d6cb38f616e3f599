"""Layer measures: the released tool's numbers, the definitions, streaming, and clear errors."""

import pytest
import torch

from opencrate import coding_rate, load_official, subspace_coding_rate
from opencrate.analysis.rates import LayerMeasures, layer_measures, released_coding_rate
from opencrate.analysis.states import record
from tests.golden import load_golden, sub_dict

from .models import split, tiny_crate, tiny_images


@pytest.fixture(scope="module")
def golden():
    return load_golden("crate_measures", "official_code")


@pytest.fixture(scope="module")
def official(golden):
    weights = load_golden("crate_classifier", "main")
    model = load_official(sub_dict(weights, "state_dict."), "crate", num_attention_heads=4, image_size=32, patch_size=4)
    return model, weights["images"]


def test_released_tool_is_reproduced(golden, official):
    model, images = official
    found = layer_measures(model, images.split(2), released_tool=True)
    pairs = {
        "released_subspace_rate": ("coding_rate_mean.eps0.01", "coding_rate_std.eps0.01"),
        "released_zero_fraction": ("sparsity_mean", "sparsity_std"),
    }
    for key, (mean, std) in pairs.items():
        torch.testing.assert_close(found.mean(key).float(), golden[f"official.{mean}"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.std(key).float(), golden[f"official.{std}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
def test_released_rate_at_every_eps_of_the_golden_set(golden, official, eps):
    model, images = official
    (states,) = record(model, [images])
    rates = torch.stack([released_coding_rate(step.projected, eps) for step in states.steps()], dim=1)
    expected = golden[f"official.coding_rate_mean.eps{eps}"]
    torch.testing.assert_close(rates.mean(0), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(rates.std(0), golden[f"official.coding_rate_std.eps{eps}"], rtol=2e-5, atol=1e-5)


def test_rates_are_those_of_the_official_states(official):
    """R^c and R on the reference's own Z^{l+1/2} with its own U: raw tokens, class token included."""
    model, images = official
    weights = load_golden("crate_classifier", "main")
    found = layer_measures(model, [images], eps=0.5)
    compared = 0
    for layer in range(3):
        bases = weights[f"state_dict.transformer.layers.{layer}.0.fn.qkv.weight"].unflatten(0, (4, 12)).mT.double()
        before = "tokens_embedded" if layer == 0 else f"layer{layer - 1}.out"
        for key, value in expected_measures(weights, before, f"layer{layer}", bases).items():
            torch.testing.assert_close(found.values[key][: len(value), layer], value, rtol=2e-5, atol=2e-5)
            compared += 1
    assert compared >= 5


def expected_measures(weights, before: str, layer: str, bases: torch.Tensor) -> dict[str, torch.Tensor]:
    """The definitions on whichever of the reference's states are at hand."""
    expected = {}
    if before in weights:
        expected["subspace_rate_before"] = subspace_coding_rate(weights[before].double(), bases, 0.5)
    if f"{layer}.half" in weights:
        half = weights[f"{layer}.half"].double()
        expected["rate"], expected["subspace_rate"] = coding_rate(half, 0.5), subspace_coding_rate(half, bases, 0.5)
        expected["rate_reduction"] = expected["rate"] - expected["subspace_rate"]
        unit = half / half.norm(dim=-1, keepdim=True)
        expected["subspace_rate_unit_norm"] = subspace_coding_rate(unit, bases, 0.5)
    if f"{layer}.out" in weights:
        after = weights[f"{layer}.out"].double()
        expected["nonzero_fraction"] = (after != 0).double().mean((1, 2))
        expected["l1_per_token"] = after.abs().sum(2).mean(1)
    return expected


def test_batches_do_not_matter():
    model, images = tiny_crate(), tiny_images(7)
    whole = layer_measures(model, [images], released_tool=True)
    parts = layer_measures(model, split(images, 3), released_tool=True)
    assert whole.num_images == 7 and whole.num_layers == 3 and len(whole.values) == 9
    for key, value in whole.values.items():
        assert value.dtype == torch.float64 and value.shape == (7, 3)
        torch.testing.assert_close(parts.values[key], value, rtol=1e-5, atol=1e-6)


def test_first_images_only_and_bare_tensors():
    model, images = tiny_crate(), tiny_images(7)
    some = layer_measures(model, split(images, 3), num_images=4)
    bare = layer_measures(model, [images["pixel_values"][:4]])
    torch.testing.assert_close(some.values["rate"], bare.values["rate"], rtol=1e-5, atol=1e-6)


def test_recording_is_lazy_and_leaves_the_model_as_it_was():
    model = tiny_crate().train()
    model.crate.layers[1].eval()
    read = []

    def batches():
        for batch in split(tiny_images(6), 2):
            read.append(len(batch["pixel_values"]))
            yield batch

    modes = [module.training for module in model.modules()]
    states = record(model, batches())
    first = next(states)
    assert read == [2]
    assert [module.training for module in model.modules()] == modes
    assert not first.logits.requires_grad and first.attentions is None
    assert len(first.hidden) == 4 and first.hidden[0].shape == (2, 7, 12)
    for step in first.steps():
        assert step.subspaces.shape == (2, 12, 6) and step.projected.shape == (2, 2, 7, 6)
    assert sum(part.num_images for part in states) == 4


def test_rows_and_json_keep_the_numbers():
    found = layer_measures(tiny_crate(), [tiny_images(5)], eps=0.3, released_tool=True)
    again = LayerMeasures.from_dict(found.to_dict())
    assert again.eps == 0.3 and all(torch.equal(again.values[key], found.values[key]) for key in found.values)
    rows = {(row["measure"], row["layer"]): row for row in found.to_rows()}
    assert len(rows) == 9 * 3
    row = rows["subspace_rate", 2]
    values = found.values["subspace_rate"][:, 1]
    assert row["mean"] == pytest.approx(float(values.mean()), rel=1e-12)
    assert row["std"] == pytest.approx(float(values.std()), rel=1e-12)
    assert (row["eps"], row["num_images"], row["unit"]) == (0.3, 5, "nats per image")
    assert rows["released_subspace_rate", 1]["eps"] == pytest.approx(0.1)
    assert rows["nonzero_fraction", 1]["eps"] is None


def test_one_image_has_no_spread():
    rows = layer_measures(tiny_crate(), [tiny_images(1)]).to_rows()
    assert {row["std"] for row in rows} == {None}


@pytest.mark.parametrize("eps", [0, -0.5, float("nan")])
def test_eps_must_be_positive(eps):
    with pytest.raises(ValueError, match="eps"):
        layer_measures(tiny_crate(), [tiny_images(1)], eps=eps)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "no images"),
        ([torch.empty(0, 1, 4, 6)], {}, r"\(0, 1, 4, 6\)"),
        ([{"labels": torch.zeros(1)}], {}, "pixel_values"),
        ([tiny_images(3)], {"num_images": 5}, "only 3 images"),
        ([tiny_images(3)], {"num_images": 0}, "num_images=0"),
    ],
)
def test_bad_batches_are_named(batches, options, message):
    with pytest.raises(ValueError, match=message):
        layer_measures(tiny_crate(), batches, **options)


def test_a_damaged_layer_is_named():
    model = tiny_crate()
    with torch.no_grad():
        next(model.crate.layers[1].parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="layer 2: the state 'compressed'"):
        layer_measures(model, [tiny_images(2)])


def test_a_model_without_subspaces_is_refused():
    with pytest.raises(ValueError, match="Linear: has no MSSA"):
        next(record(torch.nn.Linear(2, 2), [tiny_images(1)]))

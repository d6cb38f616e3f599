"""Layer measures: the released tool's numbers, the definitions, streaming, and clear errors."""

import json
import weakref
from dataclasses import replace

import pytest
import torch

from opencrate import coding_rate, load_official, sparse_rate_reduction, sparsity, subspace_coding_rate
from opencrate.analysis.layers import measure as measuring, result as rates
from opencrate.analysis.layers.measure import released_coding_rate
from opencrate.analysis.layers.registry import MEASURES, SETS, SPARSITY, STATES, measure_key
from opencrate.analysis.layers.result import LayerMeasures, layer_measures
from opencrate.analysis.layers.threads import single_threaded
from opencrate.analysis.maths.spectra import effective_rank, squared_singular_values, stable_rank
from opencrate.analysis.record.states import LayerStates, LayerStep, record
from opencrate.stats.intervals import bootstrap_mean
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
    assert whole.num_inputs == 7 and whole.num_layers == 3 and len(whole.values) == 16
    for key, value in whole.values.items():
        assert value.dtype == torch.float64 and value.shape == (7, 3)
        torch.testing.assert_close(parts.values[key], value, rtol=1e-5, atol=1e-6)


def test_first_images_only_and_bare_tensors():
    model, images = tiny_crate(), tiny_images(7)
    some = layer_measures(model, split(images, 3), num_inputs=4)
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
    assert len(first.layers) == 3 and first.layers[0].before.shape == (2, 7, 12)
    for step in first.steps():
        assert step.subspaces.shape == (2, 12, 6) and step.projected.shape == (2, 2, 7, 6)
    assert sum(part.num_inputs for part in states) == 4


def test_rows_and_json_keep_the_numbers():
    found = layer_measures(tiny_crate(), [tiny_images(5)], eps=0.3, released_tool=True)
    again = LayerMeasures.from_dict(found.to_dict())
    assert again.eps == 0.3 and all(torch.equal(again.values[key], found.values[key]) for key in found.values)
    rows = {(row["measure"], row["layer"]): row for row in found.to_rows()}
    assert len(rows) == 16 * 3
    row = rows["subspace_rate", 2]
    values = found.values["subspace_rate"][:, 1]
    assert row["mean"] == pytest.approx(float(values.mean()), rel=1e-12)
    assert row["std"] == pytest.approx(float(values.std()), rel=1e-12)
    interval = bootstrap_mean(values)
    assert (row["low"], row["high"]) == (float(interval.low), float(interval.high))
    assert row["low"] < row["mean"] < row["high"]
    assert (row["eps"], row["num_images"], row["unit"]) == (0.3, 5, "nats per image")
    assert rows["released_subspace_rate", 1]["eps"] == pytest.approx(0.1)
    assert rows["nonzero_fraction", 1]["eps"] is None


def test_one_image_has_no_spread():
    rows = layer_measures(tiny_crate(), [tiny_images(1)]).to_rows()
    assert {row[name] for row in rows for name in ("std", "low", "high")} == {None}


# --- every measure at every half-step ----------------------------------------------------------------------------


def definitions(Z: torch.Tensor, U: torch.Tensor, eps: float, lam: float) -> dict[str, torch.Tensor]:
    """Every measure of one state, from the public functions in float64, image by image."""
    Z, U = Z.double(), U.double()
    sigma = torch.linalg.svdvals(Z)
    share = sigma / sigma.sum(-1, keepdim=True)
    return {
        "rate": coding_rate(Z, eps),
        "subspace_rate": subspace_coding_rate(Z, U, eps),
        "rate_reduction": coding_rate(Z, eps) - subspace_coding_rate(Z, U, eps),
        "sparse_rate_reduction": sparse_rate_reduction(Z, U, lam, eps),
        "nonzero_fraction": sparsity(Z),
        "l1_per_token": sparsity(Z, "l1") / Z.shape[-2],
        "gini": sparsity(Z, "gini"),
        "hoyer": sparsity(Z, "hoyer"),
        "effective_rank": (-(share * share.clamp_min(1e-300).log()).sum(-1)).exp(),
        "stable_rank": sigma.square().sum(-1) / sigma[..., 0].square(),
    }


def test_full_set_is_the_definitions_at_every_half_step():
    model, images = tiny_crate(), tiny_images(5)
    found = layer_measures(model, split(images, 2), 0.4, measures="full", lam=0.05)
    (states,) = record(model, [images])
    keys = set()
    for index, step in enumerate(states.steps()):
        for state in STATES:
            for quantity, expected in definitions(getattr(step, state), step.subspaces, 0.4, 0.05).items():
                key = measure_key(quantity, state)
                torch.testing.assert_close(found.values[key][:, index], expected, rtol=1e-5, atol=1e-5, msg=key)
                keys.add(key)
            key = measure_key("subspace_rate", state)
            each = subspace_coding_rate(getattr(step, state).double(), step.subspaces.double(), 0.4, per_subspace=True)
            torch.testing.assert_close(found.subspace_values[key][:, index], each, rtol=1e-5, atol=1e-6)
        assert torch.equal(found.values["code_gini"][:, index], found.values["gini"][:, index])
        silent = (step.codes.abs().amax((0, 1)) == 0).double().mean()
        torch.testing.assert_close(found.totals["dead_atoms"][index], silent)
    assert keys | {f"code_{q}" for q in SPARSITY} | {"subspace_rate_unit_norm"} == found.values.keys()
    assert found.values.keys() | found.totals.keys() == set(SETS["full"])


def test_sets_and_keys():
    model, images = tiny_crate(), [tiny_images(3)]
    full = layer_measures(model, images, measures="full")
    for measures in ("basic", ("gini",), ("basic", "gini_before", "dead_atoms"), ("rate_reduction_after",)):
        found = layer_measures(model, images, measures=measures)
        names = (measures,) if isinstance(measures, str) else measures
        wanted = {key for name in names for key in SETS.get(name, (name,))}
        assert found.values.keys() | found.totals.keys() == wanted
        assert list(found.values) == [key for key in MEASURES if key in found.values]
        for key in found.values:
            torch.testing.assert_close(found.values[key], full.values[key], rtol=1e-6, atol=1e-9)


def test_l1_objective_and_its_price():
    model, images = tiny_crate(), [tiny_images(3)]
    found = layer_measures(model, images, measures=("sparse_rate_reduction_after", "rate_reduction_after"), norm="l1")
    (states,) = record(model, images)
    l1 = torch.stack([step.after.abs().double().sum((1, 2)) for step in states.steps()], dim=1)
    price = found.values["rate_reduction_after"] - found.values["sparse_rate_reduction_after"]
    torch.testing.assert_close(price, 0.1 * l1, rtol=1e-5, atol=1e-6)
    assert {row["lam"] for row in found.to_rows() if row["measure"].startswith("sparse")} == {0.1}


def test_chosen_layers_keep_their_numbers():
    model, images = tiny_crate(), [tiny_images(4)]
    whole, some = (layer_measures(model, images, measures="full", layers=layers) for layers in (None, [3, 1]))
    assert some.layer_numbers == (1, 3) and whole.layer_numbers == (1, 2, 3)
    for key, value in some.values.items():
        torch.testing.assert_close(value, whole.values[key][:, [0, 2]])
    assert {row["layer"] for row in some.to_rows()} == {1, 3}
    with pytest.raises(ValueError, match=r"layers=\[4\]: the model has layers 1 to 3"):
        layer_measures(model, images, layers=[4])


def padded_states(lengths: list[int], noise: float) -> LayerStates:
    """Two layers of made-up states, one text per length; what stands in the padding depends on `noise`."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

    def state(width: int = 6) -> torch.Tensor:
        Z = torch.randn(len(lengths), max(lengths), width, generator=generator)
        return torch.where(mask[..., None], Z, noise)

    U = torch.randn(2, 6, 3, generator=generator)
    ends = [state() for _ in range(3)]
    steps = []
    for index in range(2):
        before, after = ends[index : index + 2]
        projected = torch.einsum("bnd,kdp->bknp", before, U)
        steps.append(LayerStep(before, projected, U, state(), after, state(9).relu(), mask, index + 1))
    return LayerStates(tuple(steps), mask=mask)


def measured(monkeypatch, states: list[LayerStates]) -> LayerMeasures:
    monkeypatch.setattr(rates, "record", lambda *_, **__: iter(states))
    return layer_measures(None, [], measures="full", released_tool=True)


def test_padding_does_not_enter(monkeypatch):
    lengths = [4, 7, 4, 5]
    found = measured(monkeypatch, [padded_states(lengths, noise=1e3)])
    other = measured(monkeypatch, [padded_states(lengths, noise=float("nan"))])
    assert all(torch.equal(found.values[key], other.values[key]) for key in found.values)
    assert torch.equal(found.totals["dead_atoms"], other.totals["dead_atoms"])
    states = padded_states(lengths, noise=0)
    for row, length in enumerate(lengths):
        alone = []
        for step in states.steps():
            cut = {n: getattr(step, n)[row : row + 1, :length] for n in ("before", "compressed", "after", "codes")}
            alone.append(replace(step, projected=step.projected[row : row + 1, :, :length], mask=None, **cut))
        expected = measured(monkeypatch, [LayerStates(tuple(alone))])
        for key, value in expected.values.items():
            torch.testing.assert_close(found.values[key][row : row + 1], value, rtol=1e-6, atol=1e-6, msg=key)


def test_an_atom_is_dead_only_if_it_never_fires_in_any_batch(monkeypatch):
    states = padded_states([3, 3], noise=0)
    codes = torch.zeros(2, 3, 4)
    codes[0, 1, 0], codes[1, 2, 2] = 1.0, 0.5
    batches = [
        replace(states, layers=tuple(replace(step, codes=codes[i : i + 1].expand(2, 3, 4)) for step in states.layers))
        for i in (0, 1)
    ]
    assert measured(monkeypatch, batches[:1]).totals["dead_atoms"].tolist() == [0.75, 0.75]
    found = measured(monkeypatch, batches)
    assert found.totals["dead_atoms"].tolist() == [0.5, 0.5] and found.num_inputs == 4
    rows = [row for row in found.to_rows() if row["measure"] == "dead_atoms"]
    assert [(row["layer"], row["mean"], row["std"], row["low"]) for row in rows] == [
        (1, 0.5, None, None),
        (2, 0.5, None, None),
    ]


def test_a_code_that_cannot_be_read(monkeypatch):
    states = padded_states([3, 3], noise=0)
    blind = LayerStates(tuple(replace(step, codes=None) for step in states.layers))
    assert not [key for key in measured(monkeypatch, [blind]).values if key.startswith("code")]
    with pytest.raises(ValueError, match="layer 1 has no code"):
        layer_measures(None, [], measures=("code_gini",))


def test_half_precision_states_are_measured_in_float32():
    model, images = tiny_crate(), tiny_images(3)
    expected = layer_measures(model, [images], measures="full")
    found = layer_measures(model.to(torch.bfloat16), [images], measures="full")
    torch.testing.assert_close(found.values["rate"], expected.values["rate"], rtol=0.1, atol=0.1)
    assert all(value.isfinite().all() for value in found.values.values())


def test_float32_projections_are_enough():
    """Against float64 throughout: full rank, power-law spectra, and tokens 1e4 times as long as the others."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for decay in (0.0, 0.5, 1.0, 2.0):
        for massive in (1.0, 1e2, 1e4):
            rotation = torch.linalg.qr(torch.randn(192, 192, generator=generator)).Q
            Z = torch.randn(2, 65, 192, generator=generator) * torch.arange(1.0, 193) ** -decay @ rotation
            Z = 8 * Z + torch.randn(192, generator=generator)
            Z[:, 0] *= massive
            U = torch.randn(6, 192, 32, generator=generator) / 14
            step = LayerStep(Z, None, U, Z, Z)
            plan = measuring.plan_measures(("rate", "subspace_rate"), 0.5, 0.1, "l0", 0.0, False)
            (found,), _ = measuring._measure_layers([step], plan)
            for key, exact in (
                ("rate", coding_rate(Z.double(), 0.5)),
                ("subspace_rate", subspace_coding_rate(Z.double(), U.double(), 0.5)),
            ):
                worst = max(worst, float(((found[key] - exact).abs() / exact).max()))
    assert worst < 2e-6, worst


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
def test_threads_share_the_images_and_change_nothing(count, two_threads):
    """Per image the same, in order; dead atoms over all; a state that two layers share is measured once."""
    model, images = tiny_crate(), tiny_images(count)
    both = layer_measures(model, [images], measures="full")
    torch.set_num_threads(1)
    alone = layer_measures(model, [images], measures="full")
    for name in ("values", "totals", "subspace_values"):
        ours, theirs = getattr(both, name), getattr(alone, name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-9, atol=1e-9)


def test_each_thread_computes_with_one(two_threads):
    assert set(single_threaded(2).map(lambda _: torch.get_num_threads(), range(8))) == {1}
    assert torch.get_num_threads() == 2


def test_only_one_batch_of_states_is_held(monkeypatch):
    held = []
    measure = rates.measure_states

    def spy(states, plan):
        held.append(weakref.ref(states.layers[0].after))
        return measure(states, plan)

    def batches():
        for part in split(tiny_images(6), 2):
            assert not [reference for reference in held if reference() is not None]
            yield part

    monkeypatch.setattr(rates, "measure_states", spy)
    assert layer_measures(tiny_crate(), batches()).num_inputs == 6 and len(held) == 3


def test_ranks_by_hand():
    Z = torch.diag(torch.tensor([2.0, 2, 0, 0]))[:, :3]
    squared = squared_singular_values(torch.stack([Z, torch.zeros_like(Z), Z * 1e-12]))
    torch.testing.assert_close(squared[0], torch.tensor([0.0, 4, 4], dtype=torch.float64))
    torch.testing.assert_close(effective_rank(squared), torch.tensor([2.0, 0, 2], dtype=torch.float64))
    torch.testing.assert_close(stable_rank(squared), torch.tensor([2.0, 0, 2], dtype=torch.float64))
    share = torch.tensor([3.0, 1.0]).double() / 4
    uneven = effective_rank(squared_singular_values(torch.diag(torch.tensor([3.0, 1.0]))))
    torch.testing.assert_close(uneven, (-(share * share.log()).sum()).exp())
    duplicated = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).expand(20, 8)
    assert float(effective_rank(squared_singular_values(duplicated))) == pytest.approx(1, abs=1e-6)


def test_frames_rows_and_json_of_the_full_set():
    found = layer_measures(tiny_crate(), [tiny_images(4)], measures="full")
    again = LayerMeasures.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again.to_rows() == found.to_rows() and again.subspace_rows() == found.subspace_rows()
    frame = found.to_frame()
    assert len(frame) == len(SETS["full"]) * 3 and set(frame["measure"]) == set(SETS["full"])
    rows = found.subspace_rows()
    assert len(rows) == 3 * 3 * 2 and {row["subspace"] for row in rows} == {1, 2}
    assert sum(r["mean"] for r in rows if r["measure"] == "subspace_rate" and r["layer"] == 2) == pytest.approx(
        float(found.mean("subspace_rate")[1])
    )
    old = {"eps": 0.5, "values": {"rate": [[1.0, 2.0]]}}
    assert LayerMeasures.from_dict(old).layer_numbers == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": "all"}, "measures: 'all'; choose basic, full"),
        ({"measures": ()}, "measures: nothing"),
        ({"measures": ("rate", "nope")}, "'nope'"),
        ({"lam": -1.0}, "lam=-1"),
        ({"tol": float("nan")}, "tol=nan"),
        ({"norm": "l2"}, "norm='l2'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        layer_measures(tiny_crate(), [tiny_images(1)], **options)


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
        ([tiny_images(3)], {"num_inputs": 5}, "only 3 images"),
        ([tiny_images(3)], {"num_inputs": 0}, "num_inputs=0"),
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

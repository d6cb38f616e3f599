"""The forms that are timed: that they are what they are called, and that their products are counted right."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import opencrate as oc
from opencrate.bench.flops import flops_of, ista_products
from opencrate.bench.jobs import Jobs
from opencrate.bench.models import build, config_of, count_parameters, equal_depth, equal_width, inputs_of
from opencrate.bench.published import check_same, published_form
from opencrate.bench.run import bench, settings_of
from opencrate.bench.settings import Case

ALPHA = {"dictionary_expansion": 4, "dictionary_decode": "untied", "ista_num_steps": 2, "ista_residual": True}
OVERCOMPLETE = {"dictionary_expansion": 2, "dictionary_decode": "tied", "ista_num_steps": 2}


@pytest.mark.parametrize("changes", [{}, ALPHA, OVERCOMPLETE, {"ista_num_steps": 3}], ids=str)
@pytest.mark.parametrize("task", ["image", "text"])
def test_published_form_shares_the_parameters_and_computes_the_same(task, changes):
    settings = settings_of(task, None, None, changes, smoke=True)
    ours = build(settings, "ours")
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = published_form(ours)
    assert {id(one) for one in ours.parameters()} == {id(one) for one in other.parameters()}
    inputs = inputs_of(settings, config_of(settings))
    results = [model(**inputs) for model in (ours, other)]
    check_same(results[0].logits, results[1].logits)
    grads = [torch.autograd.grad(found.loss, ours.crate.layers[0].sparsify.ista.dictionary)[0] for found in results]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)


def test_published_autoencoder_computes_the_same():
    settings = settings_of("mae", None, None, {}, smoke=True)
    ours = build(settings, "ours")
    inputs = inputs_of(settings, config_of(settings))
    with torch.no_grad():
        check_same(*(model(**inputs).logits for model in (ours, published_form(ours))))


@pytest.mark.parametrize("changes", [{"ista_threshold": "soft"}, {"attention_scale": 3.0}, {"compression_kappa": 0.5}])
def test_another_function_is_not_timed(changes):
    jobs = Jobs(settings_of("image", None, None, changes, smoke=True))
    with pytest.raises(ValueError, match="against=published: the published form differs from this configuration"):
        jobs.job(Case("published", "forward"))


NEW = [
    {"compression": "cbsa"},
    {"sparsification": "mlp"},
    {"position": "relative_bias"},
    {"learned_steps": "layer"},
    {"attention_output": "tied"},
]


@pytest.mark.parametrize("changes", NEW)
def test_what_was_not_published_has_no_published_form(changes):
    """Also where the weights that a model starts with make no difference, as a bias of 0."""
    jobs, [(name, value)] = Jobs(settings_of("image", None, None, changes, smoke=True)), changes.items()
    with pytest.raises(ValueError, match=f"against=published: there is no published form of {name}='{value}'"):
        jobs.job(Case("published", "forward"))
    assert jobs.job(Case("ours", "forward")) is not None


@pytest.mark.parametrize("changes", [{}, *NEW[:2]])
def test_by_default_the_published_form_is_left_out_where_there_is_none(changes):
    found = bench("image", config=changes, dtypes=["float32"], modes=["forward"], repeats=2, smoke=True)
    assert [line.form for line in found.lines] == ["ours", *([] if changes else ["published"]), "vit"]


def counted(settings, form):
    """What torch counts of a forward with separate attention products; its matrix of an ISTA step is not the maths'."""
    model, inputs = build(settings, form), inputs_of(settings, config_of(settings))
    for module in model.modules():  # a decoder has a configuration of its own
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    inputs.pop("labels", None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs, **({"use_cache": False} if settings.task == "text" else {}))
    return counter.get_total_flops()


WIDE = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("task", "form", "changes"),
    [
        ("image", "published", {}),
        ("image", "published", ALPHA),
        ("image", "published", {"head_dim": 8}),
        ("image", "ours", ALPHA),
        ("image", "ours", {"ista_num_steps": 2}),
        ("image", "vit", {}),
        ("mae", "published", {}),
        ("mae", "vitmae", {}),
        ("mae", "visible", {"ista_num_steps": 2}),
        ("text", "published", OVERCOMPLETE),
        ("text", "gpt2", {}),
        ("image", "ours", {**ALPHA, "compression": "attention"}),
        ("image", "ours", {"compression": "tssa", "sparsification": "mlp"}),
        ("image", "ours", {**ALPHA, "compression": "gradient"}),
        ("image", "ours", {**ALPHA, "position": "both"}),
        ("image", "ours", {**ALPHA, "compression": "symmetric"}),
    ],
)
def test_products_are_those_that_torch_counts(task, form, changes):
    settings = settings_of(task, None, None, changes, smoke=True)
    config = config_of(settings)
    expected = flops_of(settings, Case(form, "forward"), config)
    if task == "text":  # torch counts every pair; the maths looks at those that are not later
        inner = config.num_attention_heads * config.head_dim
        expected += config.num_hidden_layers * 4 * settings.batch * settings.block * inner * (settings.block - 1) / 2
    if config.compression == "gradient":  # torch also counts the bound of ||U||: four products of matrices
        expected += config.num_hidden_layers * 4 * 2 * (config.num_attention_heads * config.head_dim) ** 3
    assert counted(settings, form) == expected


def test_products_of_representatives():
    """All that torch counts but the pooling: each of 2 x 2 cells is a mean over rows, then over columns."""
    settings = settings_of("image", None, None, {**ALPHA, "compression": "cbsa"}, smoke=True)
    config = config_of(settings)
    assert config.grid_size == (2, 2)
    missing = counted(settings, "ours") - flops_of(settings, Case("ours", "forward"), config)
    assert 0 < missing < 0.02 * counted(settings, "ours")


@pytest.mark.parametrize("changes", [{"compression": "gradient", "attention_output": "tied"}])
def test_what_is_not_counted_is_not_guessed(changes):
    settings = settings_of("text", None, None, changes, smoke=True)
    assert flops_of(settings, Case("ours", "step"), config_of(settings)) is None
    assert flops_of(settings, Case("gpt2", "step"), config_of(settings)) > 0


def test_ours_has_one_product_where_the_published_form_has_three():
    config = config_of(settings_of("image", None, None, {}, smoke=True))
    assert [ista_products(config, published) for published in (False, True)] == [1, 3]


def test_step_is_three_forwards_and_generation_is_not_counted():
    settings = settings_of("image", None, None, {}, smoke=True)
    forward, step = (flops_of(settings, Case("ours", mode), config_of(settings)) for mode in ("forward", "step"))
    assert step == 3 * forward
    settings = settings_of("decode", None, None, {}, smoke=True)
    assert flops_of(settings, Case("ours", "generate"), config_of(settings)) is None


@pytest.mark.parametrize("size", ["gpt-base", "laptop", "tiny"])
def test_equal_depth_has_gpt2s_parameters(size):
    settings = settings_of("decode", size, None, {}, prompt=8, new=8)
    depth = equal_depth(settings)
    with torch.device("meta"):
        ours = count_parameters(
            build(settings_of("decode", size, None, {"num_hidden_layers": depth}, prompt=8, new=8), "ours")
        )
        theirs = count_parameters(build(settings, "gpt2"))
    assert abs(ours / theirs - 1) <= 0.03 and depth > config_of(settings).num_hidden_layers


@pytest.mark.parametrize("size", ["gpt-base", "laptop", "alpha-small"])
def test_equal_width_has_our_parameters(size):
    settings = settings_of("decode", size, None, {}, prompt=8, new=8)
    with torch.device("meta"):
        ours, theirs = (count_parameters(build(settings, form)) for form in ("ours", "narrow"))
    assert abs(theirs / ours - 1) <= 0.03
    assert equal_width(settings) % config_of(settings).num_attention_heads == 0


def test_equal_depth_that_is_not_there():
    settings = settings_of("decode", None, None, {"dictionary_expansion": 64, "dictionary_decode": "tied"}, smoke=True)
    with pytest.raises(ValueError, match=r"against=equal: .* no depth comes within 3 %"):
        equal_depth(settings)


def test_half_precision_is_no_less_accurate_than_the_published_form():
    """Logits of a CRATE under bf16 autocast, against float64: the identity inside M would cost twice the error."""
    config = oc.CrateConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, image_size=64, patch_size=8)
    images, errors = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)), {}
    for seed in range(6):
        torch.manual_seed(seed)
        ours = oc.CrateForImageClassification(config).eval()
        with torch.no_grad():
            exact = copy.deepcopy(ours).double()(images.double()).logits
            for name, model in {"ours": ours, "published": published_form(ours)}.items():
                with torch.autocast("cpu", torch.bfloat16):
                    logits = model(images).logits.double()
                errors.setdefault(name, []).append(((logits - exact).norm() / exact.norm()).item())
    assert sum(errors["ours"]) < 1.15 * sum(errors["published"]) < 6 * 0.02

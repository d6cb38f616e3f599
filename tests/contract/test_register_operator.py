"""Operators from outside the package: one entry is all it takes to train, save, analyze, ablate and report with one."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opencrate import (
    CrateConfig,
    CrateForCausalLM,
    CrateForImageClassification,
    CrateMAEConfig,
    CrateMAEForPreTraining,
    CrateTextConfig,
    Operator,
    analyze,
    audit,
    diagnose,
    register_operator,
    registry,
)
from opencrate.analysis.features.codes import directions, feature_set_to
from opencrate.analysis.record.states import describe_states, has_maps, record
from opencrate.cli.main import main
from opencrate.compression import Subspaces
from opencrate.recipe.load import load_recipe
from opencrate.training.train import train

close = torch.testing.assert_close


class TokenStatistics(Subspaces):
    """As TSSA: each subspace scales its coordinates by their energy over the tokens; no N x N map. [2412.17810]"""

    def __init__(self, config, layer_idx: int = 0, temperature: float = 1.0, squared: bool = True):
        super().__init__(config, layer_idx)
        self.temperature, self.squared = temperature, squared

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **kwargs) -> tuple[Tensor, None]:
        V, U = self.project(tokens)
        energy = V.square().mean(-2, keepdim=True) if self.squared else V.abs().mean(-2, keepdim=True)
        heads = -V / (1 + self.temperature * energy)
        return self.combine(heads.transpose(1, 2).flatten(-2), U), None


class Averages(nn.Module):
    """A compression without subspaces: a linear map of the mean token."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **kwargs) -> tuple[Tensor, None]:
        return self.mix(tokens.mean(1, keepdim=True)).expand_as(tokens), None


class TopK(nn.Module):
    """A sparsification: the k largest entries of a linear map, and back."""

    def __init__(self, config, k: int = 8):
        super().__init__()
        self.k = k
        self.encoder = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.decoder = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def directions(self) -> Tensor:
        return self.decoder.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(tokens).relu()
        code = code * (code >= code.topk(self.k, -1).values[..., -1:])
        return self.decoder(code), code


OPERATORS = {
    "statistics": Operator(
        "compression",
        TokenStatistics,
        options={"temperature": (float, 1.0), "squared": (bool, True)},
        states=("projected_states",),
        subspaces=registry.LEARNED,
        symbol="TSSA",
    ),
    "averages": Operator("compression", Averages),
    "topk": Operator("sparsification", TopK, options={"k": (int, 8)}, states=("sparse_codes",), residual=True),
}


@pytest.fixture(scope="module", autouse=True)
def registered():
    for name, operator in OPERATORS.items():
        register_operator(name, operator)
    yield
    for name, operator in OPERATORS.items():
        del registry._OPERATORS[operator.step][name]


FIELDS = {
    "compression": "statistics",
    "compression_options": {"temperature": 0.5},
    "sparsification": "topk",
    "sparsification_options": {"k": 4},
}


def small(cls=CrateConfig, **changes):
    return cls.from_size("digits", **{"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, **changes})


def model_of(**changes) -> CrateForImageClassification:
    torch.manual_seed(0)
    return CrateForImageClassification(small(**{**FIELDS, **changes})).eval()


def images_of(count: int = 8) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_options_are_completed_and_checked():
    config = small(**FIELDS)
    assert config.compression_options == {"temperature": 0.5, "squared": True}
    for changes, message in (
        (
            {"compression_options": {"temprature": 1.0}},
            "compression_options: unknown option 'temprature'; did you mean",
        ),
        ({"compression_options": {"squared": 3}}, "compression_options.squared must be true or false; got 3"),
        ({"compression": "mssa"}, "compression_options: unknown option 'temperature'; it has no options"),
        ({"compression": "statistic"}, "compression='statistic' is not allowed; it must be one of mssa, attention, "),
        ({"sparsification": "topj"}, "or another that opencrate.register_operator has registered"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**{**FIELDS, **changes})


def test_ours_write_nothing_new_into_their_configuration():
    assert not {name for name in small().to_dict() if "option" in name or "imports" in name}


def test_states_are_those_of_the_entry():
    model = model_of()
    asked = {f"output_{name}": True for name in ("attentions", "projected_states", "sparse_codes", "hidden_states")}
    outputs = model(images_of(), **asked)
    assert not outputs.attentions and not has_maps(model)
    assert len(outputs.projected_states) == len(outputs.sparse_codes) == 2
    assert ((outputs.sparse_codes[0] != 0).sum(-1) <= 4).all()
    layer = model.crate.layers[1]
    half = outputs.hidden_states[1] + layer.compress.operator(layer.compress.norm(outputs.hidden_states[1]))[0]
    close(outputs.hidden_states[2], half + layer.sparsify.operator(layer.sparsify.norm(half))[0])
    with pytest.raises(ValueError, match=r"attentions=True: .* not for compression='statistics'"):
        next(record(model, [images_of()], attentions=True))


def test_saving_and_loading(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path)
    loaded = CrateForImageClassification.from_pretrained(tmp_path)
    close(loaded(images_of()).logits, model(images_of()).logits, rtol=0, atol=0)
    assert any(name.startswith("crate.layers.0.compress.statistics.") for name in loaded.state_dict())
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["compression_options"] == {"temperature": 0.5, "squared": True}
    assert saved["operator_imports"] == {"compression": __name__, "sparsification": __name__}
    code = f"from opencrate import CrateModel; CrateModel.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"compression='statistics' is not allowed; it must be registered first: import {__name__}" in done.stderr


def test_the_page_of_the_documentation_runs():
    before = dict(registry._OPERATORS["compression"])
    try:
        text = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
        names: dict = {"__name__": "page"}
        exec(text.split("```python\n")[1].split("```")[0], names)
        assert names["model"](images_of()).logits.shape == (8, 10)
    finally:
        registry._OPERATORS["compression"] = before


def test_an_installed_package_registers_when_its_operator_is_asked_for(monkeypatch):
    class Entry:
        name = "late"

        @staticmethod
        def load():
            register_operator("late", Operator("compression", Averages))

    entries = {("opencrate.operators", "late"): [Entry]}
    monkeypatch.setattr(metadata, "entry_points", lambda group, name: entries.get((group, name), []))
    try:
        assert small(compression="late").operator("compression").module is Averages
    finally:
        del registry._OPERATORS["compression"]["late"]


@pytest.mark.parametrize(("compression", "kind"), [("statistics", "learned U"), ("averages", "PCA of tokens")])
def test_analysis(compression, kind):
    model, batches = model_of(compression=compression, compression_options={}), [images_of()]
    symbol = {"statistics": "TSSA"}.get(compression, compression)
    assert describe_states(model) == (kind, f"Z + {symbol}(LN(Z))")
    report = analyze(model, batches, measures=["subspace_rate_before", "subspace_rate", "code_nonzero_fraction"])
    assert report.subspace_kind == kind
    assert report.measures.mean("subspace_rate").isfinite().all()
    assert report.measures.mean("code_nonzero_fraction").max() <= 4 / 32
    found = audit(model, batches, num_images=8, num_tokens=64, iterations=2, random_draws=2)
    assert len(found.layers) == 2 and found.subspace_kind == kind
    verdicts = {one.check: one for one in diagnose(model, batches).findings}
    assert "have them" in verdicts["softmax-saturation"].evidence
    assert ("learns no U" in verdicts["collapsed-subspaces"].evidence) == (compression == "averages")


def test_features_of_a_code_from_outside():
    model, images = model_of(), images_of()
    assert torch.equal(directions(model, 2), model.crate.layers[1].sparsify.operator.decoder.weight)
    with feature_set_to(model, 2, feature=3, value=5.0):
        outputs = model(images, output_sparse_codes=True)
    assert (outputs.sparse_codes[1][..., 3] == 5).all() and not torch.equal(outputs.logits, model(images).logits)


def test_the_autoencoder_runs_it_backwards_and_tied():
    torch.manual_seed(0)
    fields = {"compression": "statistics", "decoder_num_hidden_layers": 2, "tie_decoder": True}
    model = CrateMAEForPreTraining(small(CrateMAEConfig, **fields)).train()
    outputs = model(images_of())
    outputs.loss.backward()
    own, other = model.decoder.layers[0].expand.operator, model.crate.layers[1].compress.operator
    assert own.subspaces.weight is other.subspaces.weight and own.subspaces.weight.grad.abs().max() > 0


def test_causal_models_need_a_causal_operator(tmp_path):
    with pytest.raises(ValueError, match="compression='statistics' is not allowed; it must be one that keeps tokens"):
        CrateTextConfig.from_size("tiny", compression="statistics")
    assert not CrateTextConfig.from_size("tiny", is_causal=False, compression="statistics").is_causal


class Past(Subspaces):
    """Causal, without a cache: the mean of the coordinates so far."""

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **kwargs) -> tuple[Tensor, None]:
        V, U = self.project(tokens)
        mean = V.cumsum(-2) / torch.arange(1, V.shape[-2] + 1).unsqueeze(-1)
        return self.combine(mean.transpose(1, 2).flatten(-2), U), None


def test_a_causal_operator_without_a_cache_generates():
    register_operator("past", Operator("compression", Past, causal=True, subspaces=registry.LEARNED))
    try:
        torch.manual_seed(0)
        model = CrateForCausalLM(CrateTextConfig.from_size("tiny", compression="past")).eval()
        ids = torch.randint(256, (2, 5))
        found = model.generate(ids, max_new_tokens=4, do_sample=False)
        expected = ids
        for _ in range(4):
            expected = torch.cat((expected, model(expected).logits[:, -1:].argmax(-1)), 1)
        assert torch.equal(found, expected)
        assert model(ids, use_cache=True).past_key_values is None
    finally:
        del registry._OPERATORS["compression"]["past"]


WORDS = ("model.config.num_hidden_layers=2", "model.config.hidden_size=16", "training.max_steps=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory, registered):
    """Two steps of training by a recipe."""
    folder = tmp_path_factory.mktemp("operator")
    recipe = folder / "arm.yaml"
    recipe.write_text(
        "name: arm\ndescription: digits with operators from outside\nbase: digits\nmodel:\n  config:\n"
        "    compression: statistics\n    compression_options: {temperature: 0.5}\n"
        "    sparsification: topk\n    sparsification_options: {k: 4}\n"
    )
    return recipe, train(load_recipe(recipe, [*WORDS, "training.max_steps=2"]), folder / "run")


def test_training_doctor_and_the_report_page(run, tmp_path, capsys):
    _, trained = run
    folder = str(trained.directory)
    assert main(["analyze", folder, "--num-images", "16", "--output", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "against learned U" in page and "class token looks" not in page
    assert "Z + TSSA(LN(Z))" in (tmp_path / "report" / "layers.json").read_text()
    assert main(["doctor", folder, "--num-images", "16"]) in (0, 1)
    assert main(["evaluate", folder]) == 0
    capsys.readouterr()


def test_a_sweep_arm(run, tmp_path):
    recipe, _ = run
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"name: mine\ndescription: an operator from outside\nreference: crate\nseeds: [0]\narms:\n  crate: digits\n"
        f"  mine: {recipe}\n"
    )
    output = tmp_path / "out"
    assert main(["ablate", str(sweep), "--output", str(output), "--images", "8", "--smoke", *WORDS]) == 0
    arms = {one["arm"]: one for one in json.loads((output / "ablation.json").read_text())["runs"]}
    assert arms["mine"]["subspaces"] == "learned U" and arms["mine"]["values"]["entropy"] is None
    assert arms["crate"]["values"]["entropy"] is not None and arms["mine"]["values"]["hoyer"] > 0


@pytest.mark.parametrize(
    ("name", "operator", "message"),
    [
        ("mssa", OPERATORS["averages"], "is one of OpenCRATE's"),
        ("two words", OPERATORS["averages"], "must be an identifier"),
        ("norm", OPERATORS["averages"], "must be an identifier that no layer uses"),
        ("new", Operator("attention", Averages), "step='attention' must be one of compression, sparsification"),
        ("new", Operator("compression", Averages, states=("sparse_codes",)), "must be among projected_states"),
        ("new", Operator("compression", len), "must be a class of nn.Module"),
    ],
)
def test_what_cannot_be_registered_says_why(name, operator, message):
    with pytest.raises(ValueError, match=message):
        register_operator(name, operator)

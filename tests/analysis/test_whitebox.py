"""`opencrate.analyze`: the same numbers from a module, a folder or a Hub id, saved and read back, and clear errors."""

import pandas
import pytest
import torch
from torch import nn

import opencrate
from opencrate.analysis.layers.analyze import LayerAnalysis
from opencrate.analysis.layers.result import layer_measures
from opencrate.store.saved import load_model, untrained_copy

from .foreign_models import inputs_for, tiny
from .models import split, tiny_crate, tiny_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved tiny BERT with its head."""
    path = tmp_path_factory.mktemp("model") / "my-bert"
    tiny("bert", head="ForMaskedLM").save_pretrained(path)
    return path


def test_numbers_are_those_of_layer_measures():
    model, batches = tiny_crate(), split(tiny_images(5), 2)
    report = opencrate.analyze(model, batches, eps=0.3, num_inputs=4, layers=[3, 1], initial="untrained")
    assert list(report.series) == ["trained", "initialisation"] and report.measures.layers == (1, 3)
    for one, found in zip((model, untrained_copy(model, 0)), report.series.values()):
        expected = layer_measures(one, batches, 0.3, num_inputs=4, layers=[1, 3])
        assert all(torch.equal(found.values[key], value) for key, value in expected.values.items())
    assert (report.model, report.model_type, report.inputs) == ("CrateForImageClassification", "crate", "images")
    assert report.subspace_kind == "learned U" and report.half_step == "Z + MSSA(LN(Z))"


def test_one_batch_is_enough():
    images = tiny_images(3)["pixel_values"]
    one, other = opencrate.analyze(tiny_crate(), images), opencrate.analyze(tiny_crate(), [{"pixel_values": images}])
    assert torch.equal(one.measures.values["rate"], other.measures.values["rate"]) and one.initial is None


def test_a_folder_and_the_hub_give_the_modules_numbers(folder, monkeypatch):
    inputs = inputs_for("bert", padded=True)
    report = opencrate.analyze(str(folder), inputs, measures="full", initial="untrained")
    module = opencrate.analyze(tiny("bert", head="ForMaskedLM"), inputs, measures="full", initial="untrained")
    assert report.model == "my-bert" and module.model == "BertForMaskedLM" and report.inputs == "texts"
    assert report.subspace_kind == "value projections per head" and "normalised after the sum" in report.half_step
    for name, found in module.series.items():
        for key, value in found.values.items():
            torch.testing.assert_close(report.series[name].values[key], value, rtol=1e-5, atol=1e-5)

    asked = []

    def from_hub(name, **options):
        asked.append((name, options.get("local_files_only", False)))
        return original(folder, **options)

    import transformers

    original = transformers.AutoConfig.from_pretrained
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_hub)
    weights = transformers.BertForMaskedLM.from_pretrained
    monkeypatch.setattr(
        transformers.BertForMaskedLM, "from_pretrained", lambda name, **options: weights(folder, **options)
    )
    hub = opencrate.analyze("hf://owner/my-bert", inputs)
    assert asked == [("owner/my-bert", False)] and hub.model == "owner/my-bert"
    torch.testing.assert_close(hub.measures.values["rate"], module.measures.values["rate"], rtol=1e-5, atol=1e-5)


def test_checkpoints_are_measured_by_name(tmp_path):
    tiny_crate(seed=3).save_pretrained(tmp_path / "middle")
    images = tiny_images(2)
    report = opencrate.analyze(tiny_crate(), images, checkpoints={"step 5": tmp_path / "middle"})
    assert list(report.series) == ["trained", "step 5"]
    middle = opencrate.analyze(tiny_crate(seed=3), images).measures
    torch.testing.assert_close(report.series["step 5"].values["rate"], middle.values["rate"])


def test_rows_frame_and_files(tmp_path):
    report = opencrate.analyze(tiny_crate(), tiny_images(3), measures="full", initial="untrained", lam=0.2)
    frame = report.to_frame()
    assert {"model", "state", "subspaces", "layer", "measure", "mean", "low", "high", "eps"} <= set(frame.columns)
    assert set(frame["state"]) == {"trained", "initialisation"} and len(frame) == len(report.to_rows())
    assert report.save(tmp_path / "out") == tmp_path / "out"
    table = pandas.read_csv(tmp_path / "out" / "layers.csv")
    assert len(table) == len(frame) and table["mean"].to_numpy() == pytest.approx(frame["mean"].to_numpy())
    again = LayerAnalysis.load(tmp_path / "out")
    assert again.measures.lam == 0.2 and (again.model, again.half_step) == (report.model, report.half_step)
    for name, found in report.series.items():
        assert all(torch.equal(again.series[name].values[key], value) for key, value in found.values.items())
    with pytest.raises(ValueError, match="exists; choose another folder"):
        report.save(tmp_path / "out")
    report.save(tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["layers.csv", "white_box.json"]
    (tmp_path / "out" / "white_box.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        LayerAnalysis.load(tmp_path / "out")
    with pytest.raises(ValueError, match="no such file"):
        LayerAnalysis.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, "eps=0"),
        ({"eps": -1}, "eps=-1"),
        ({"layers": [4]}, "the model has layers 1 to 3, not 4"),
        ({"num_inputs": 9}, "only 2 images there; ask for at most 2"),
        ({"initial": "random"}, "initial='random'"),
        ({"subspaces": "all"}, "subspaces='all'"),
        ({"checkpoints": {"trained": "x"}}, "'trained' is taken"),
        ({"checkpoints": {"a": "nowhere"}}, "nowhere: no such folder"),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(ValueError, match=message):
        opencrate.analyze(tiny_crate(), tiny_images(2), **options)


def test_bad_inputs(tmp_path):
    with pytest.raises(ValueError, match="no images in it"):
        opencrate.analyze(tiny_crate(), [])
    with pytest.raises(ValueError, match="only once"):
        opencrate.analyze(tiny_crate(), iter([tiny_images(2)]), initial="untrained")
    with pytest.raises(ValueError, match="has no configuration; pass an untrained model"):
        untrained_copy(nn.Linear(1, 1), 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds no config.json; give .*hf://owner/name"):
        load_model(tmp_path / "empty")


def test_nan_names_its_layer():
    for model, block in ((tiny_crate(), "crate.layers.1.sparsify.norm"), (tiny("vit"), "layers.1.mlp.fc2")):
        with torch.no_grad():
            model.get_submodule(block).bias.fill_(float("nan"))
        inputs = tiny_images(2) if model.config.model_type == "crate" else inputs_for("vit")
        with pytest.raises(ValueError, match="layer 2: the state 'after' holds NaN"):
            opencrate.analyze(model, inputs)


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    model = load_model(folder)
    model.save_pretrained(tmp_path / "copy")
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    del weights["bert.encoder.layer.0.attention.self.value.weight"]
    save_file(weights, tmp_path / "copy" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"weights are missing.*self.value.weight"):
        load_model(tmp_path / "copy")

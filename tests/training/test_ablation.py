"""A sweep from the command line: runs, measures, table, going on; and the measures it adds, by hand."""

import csv
import json
import math

import pytest
import torch
from PIL import Image

from opencrate.cli.main import main
from opencrate.data.images.sources import load_images
from opencrate.reports.sweep import sentences
from opencrate.store import runs
from opencrate.store.saved import open_saved
from opencrate.studies.sweep import ArmRun, Sweep
from opencrate.studies.sweep_measures import LAYERS, MEASURES, _features, attention_entropy, class_selectivity
from opencrate.studies.sweep_table import summarise

COMMAND = ("ablate", "digits-structure", "--smoke", "--arms", "attention-only")
WORDS = ("training.max_steps=2", "--images", "8")


def test_class_selectivity_by_hand():
    activity = torch.tensor([[1.0, 2, 0, 3], [1, 4, 0, 3], [0, 1, 0, 3], [0, 1, 0, 3], [0, 0, 0, 3]])
    found = class_selectivity(activity, torch.tensor([0, 0, 1, 1, 2]))
    torch.testing.assert_close(found[[0, 1, 3]], torch.tensor([1.0, (3 - 0.5) / 3.5, 0.0]))
    assert found[2].isnan()


def test_attention_entropy_extremes():
    uniform, sharp = torch.full((1, 2, 5, 5), 0.2), torch.eye(5).expand(1, 2, 5, 5)
    found = attention_entropy(torch.cat([uniform, sharp]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0]).double(), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "out"
    assert main([*COMMAND, *WORDS, "--seeds", "0", "--output", str(folder)]) == 0
    return folder


def test_output_is_complete(swept):
    assert {path.name for path in swept.glob("[!.]*") if path.is_file()} == {
        *("ablation.csv", "ablation.json", "ablation.md", "ablation.png"),
        *("ablation-layers.csv", "ablation-layers.png"),
    }
    runs_there = {path.name for path in swept.iterdir() if path.is_dir()} - {"measures"}
    assert runs_there == {"crate-seed0", "attention-only-seed0"}
    table = list(csv.DictReader((swept / "ablation.csv").open()))
    assert {row["arm"] for row in table} == {"crate", "attention-only"}
    of_classifiers = set(MEASURES) - {"error", "psnr", "knn", "linear", "linear_patches"}
    assert {row["measure"] for row in table if row["arm"] == "crate"} == of_classifiers
    missing = of_classifiers - {row["measure"] for row in table if row["arm"] == "attention-only"}
    assert missing == {"hoyer", "selectivity"}, "there are no codes"
    content = json.loads((swept / "ablation.json").read_text())
    metrics = runs.read_metrics(swept / "attention-only-seed0")
    (run,) = [run for run in content["runs"] if run["arm"] == "attention-only"]
    assert run["values"]["accuracy"] == metrics["accuracy"] and run["subspaces"] == "learned U"
    assert Image.open(swept / "ablation.png").width > 800
    assert all(math.isfinite(value) for run in content["runs"] for value in run["values"].values() if value is not None)
    assert 0 <= run["values"]["held"] <= 5 == len(run["claims"])
    layers = list(csv.DictReader((swept / "ablation-layers.csv").open()))
    last = [row for row in layers if (row["arm"], row["measure"]) == ("attention-only", "subspace_rate")][-1]
    assert float(last["mean"]) == run["values"]["subspace_rate"] == run["layers"]["subspace_rate"][-1]
    assert {row["measure"] for row in layers} == set(LAYERS)


def test_the_same_command_goes_on(swept, monkeypatch):
    """Finished runs are neither trained nor measured again; one more seed is."""
    before = {path: path.stat().st_mtime_ns for path in swept.glob("*/model.safetensors")}
    measured = {path: path.stat().st_mtime_ns for path in swept.glob("measures/*.json")}
    assert main([*COMMAND, *WORDS, "--seeds", "0,1", "--output", str(swept)]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in {**before, **measured}.items())
    table = list(csv.DictReader((swept / "ablation.csv").open()))
    assert {row["seeds"] for row in table} == {"2"} and all(row["sd"] for row in table)
    text = (swept / "ablation.md").read_text()
    assert "seeds 0, 1; matched parameters" in text and "`attention-only`: accuracy" in text


def test_another_recipe_in_its_place_is_refused(swept, capsys):
    assert main([*COMMAND, "training.max_steps=3", "--seeds", "0", "--output", str(swept)]) == 2
    error = capsys.readouterr().err
    assert "training.max_steps was 2, now 3" in error and "choose another --output" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ablate", "digits-structur"), "did you mean 'digits-structure'"),
        (("ablate", "digits-structure", "--arms", "vit"), "has no arm 'vit'"),
        (("ablate", "digits-structure", "--seeds", "a"), "whole number"),
        (("ablate", "digits-structure", "--match", "time"), "unknown --match 'time'"),
        (("ablate", "digits-structure", "training.sed=1"), "did you mean 'training.seed'"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def run_of(arm, seed, accuracy, kind="learned U", **more):
    values = {**dict.fromkeys(MEASURES), "accuracy": accuracy, "subspace_rate": 10.0 * accuracy, **more}
    return ArmRun(arm, seed, "", kind, (2, 8, 4), values)


def test_differences_are_paired_by_seed():
    sweep = Sweep("s", "d", "crate", (0, 1, 2), {"crate": "a", "mlp": "b", "attention": "c"})
    found = [run_of("crate", seed, 0.9 + 0.01 * seed) for seed in (2, 0, 1)]
    found += [run_of("mlp", seed, 0.88 + 0.01 * seed + 0.001 * (seed == 1)) for seed in (0, 1, 2)]
    found += [run_of("attention", seed, 0.9 + 0.01 * (2 - seed), "value projections per head") for seed in (0, 1, 2)]
    cells = {(cell.arm, cell.measure): cell for cell in summarise(sweep, found)}
    crate, mlp = cells["crate", "accuracy"], cells["mlp", "accuracy"]
    assert crate.values == pytest.approx((90, 91, 92)) and float(crate.found.std) == pytest.approx(1)
    assert (crate.to_row()["low"], crate.to_row()["high"]) == pytest.approx((91 - 2.4841, 91 + 2.4841), abs=1e-3)
    assert float(mlp.difference.mean) == pytest.approx(-1.9667, abs=1e-3) and mlp.verdict == "lower"
    half = float(mlp.difference.high - mlp.difference.mean)
    assert half == pytest.approx(4.3027 * 0.057735 / 3**0.5, rel=1e-3)
    assert cells["attention", "accuracy"].verdict == "cannot tell"
    assert cells["mlp", "subspace_rate"].difference is not None
    assert cells["attention", "subspace_rate"].difference is None, "against other subspaces"
    assert ("crate", "hoyer") not in cells
    words = sentences(sweep, list(cells.values()))
    assert "`mlp`: accuracy -1.97 points (" in words[0] and words[0].endswith("lower.")
    assert words[1].endswith("no significant difference.")


@pytest.fixture
def arms(tmp_path):
    """A sweep file of two arms, each a shipped recipe or a file."""

    def write(first, second):
        path = tmp_path / "sweep.yaml"
        lines = ["name: s", "description: d", "reference: first", "seeds: [0]"]
        path.write_text("\n".join([*lines, f"arms: {{first: {first}, second: {second}}}"]))
        return str(path)

    return write


@pytest.mark.slow
def test_autoencoders_are_compared_by_their_error(arms, tmp_path, capsys):
    other = tmp_path / "dense.yaml"
    other.write_text("base: digits-mae\nmodel: {config: {ista_lambda: 0.0}}\n")
    output = tmp_path / "out"
    assert main(["ablate", arms("digits-mae", other), "--smoke", "--images", "16", "--output", str(output)]) == 0
    assert "masked-patch error" in capsys.readouterr().out
    rows = {(row["arm"], row["measure"]): row for row in csv.DictReader((output / "ablation.csv").open())}
    assert {"error", "psnr", "compression", "probe", "operations"} <= {measure for _, measure in rows}
    metrics = json.loads((output / "first-seed0" / "metrics.json").read_text())
    assert float(rows["first", "error"]["mean"]) == metrics["test"]["error_model"]["mean"]
    text = (output / "ablation.md").read_text()
    assert "`second`: masked-patch error" in text and "accuracy" not in text


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("digits", "digits-vit", "arm 'second': a vit model"),
        ("text-demo", "text-demo", "arm 'first': a crate_text model"),
        ("digits", "cifar10-mae", "arm 'second': data.path is cifar10, but digits of arm 'first'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(arms, first, second, message, tmp_path, capsys):
    assert main(["ablate", arms(first, second), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def objectives(tmp_path_factory):
    """Labels, masks and views: three tasks in one sweep, the untrained network beside them."""
    folder = tmp_path_factory.mktemp("objectives")
    (folder / "sweep.yaml").write_text(
        "name: objectives\ndescription: d\nreference: untrained\nuntrained: labels\nseeds: [0]\n"
        "arms: {labels: digits, masks: digits-mae, views: digits-lejepa}\n"
    )
    words = ["ablate", str(folder / "sweep.yaml"), "--smoke", "--images", "8", "--output", str(folder / "out")]
    assert main(words) == 0
    return folder / "out"


def test_objectives_are_compared_by_their_frozen_encoders(objectives):
    rows = {(row["arm"], row["measure"]): row for row in csv.DictReader((objectives / "ablation.csv").open())}
    arms = ["untrained", "labels", "masks", "views"]
    for measure in ("knn", "linear", "linear_patches", "compression", "rate_reduction", "nonzero", "held"):
        assert [arm for arm, key in rows if key == measure] == arms, measure
    assert not {"accuracy", "error", "loss", "probe", "operations"} & {measure for _, measure in rows}
    own = runs.read_metrics(objectives / "views-seed0")
    for name in ("knn", "linear", "linear_patches"):
        assert float(rows["views", name]["mean"]) == 100 * own[name]
        assert float(rows["untrained", name]["mean"]) == 100 * own["untrained"][name], "the same start, judged alike"
    assert rows["views", "knn"]["difference"] and ("untrained", "seconds") not in rows
    text = (objectives / "ablation.md").read_text()
    assert "| training lowers R^c of the last layer | – |" in text and "`masks`: k-NN" in text and "nan" not in text
    assert {run.name for run in objectives.glob("measures/*")} == {f"{arm}-seed0.json" for arm in arms}


def test_features_are_those_of_the_run_judged_again(objectives):
    """What a run without labels measured itself is what every other arm is measured by."""
    saved = open_saved(objectives / "views-seed0")
    splits = load_images(saved.recipe.data, labelled=False)
    known, own = _features(saved, splits, {}), runs.read_metrics(objectives / "views-seed0")
    assert known == {key: own[key] for key in known}


def test_steps_of_several_tasks_have_no_operations_in_common(objectives, capsys):
    sweep = str(objectives.parent / "sweep.yaml")
    assert main(["ablate", sweep, "--smoke", "--match", "compute", "--output", str(objectives / "other")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("opencrate: error: --match compute: counts") and error.endswith("use --match parameters\n")
    assert error.count("\n") == 1
    assert not (objectives / "other").exists()

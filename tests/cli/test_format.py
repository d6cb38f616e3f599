"""`--format json`: every command has it, and then prints one JSON document and nothing else on standard output."""

import json

import pytest

from opencrate.cli.main import COMMANDS, _parser

from ..analysis.language_models import STORY, causal, saved
from ..recipes.folders import write_image


def leaves(parser, name=""):
    """Every command that does something, with its parser: `bench compare image`, not `bench compare`."""
    if not parser.commands:
        return {name: parser}
    return {key: leaf for word, one in parser.commands.items() for key, leaf in leaves(one, f"{name} {word}").items()}


LEAVES = {name.strip(): parser for name, parser in leaves(_parser()).items()}
TINY = ("--smoke", "--repeats", "1", "--dtypes", "float32", "--modes", "forward")
SHORT = ("training.max_steps=1", "model.config.num_hidden_layers=1")
QUICK = {
    "train": ("digits", *SHORT, "--no-report", "--output", "out"),
    "finetune": ("classifier", "digits", "training.max_steps=1", "--no-report", "--output", "out"),
    "ablate": ("digits-structure", "--arms", "mlp", "--seeds", "0", "--images", "8", *SHORT, "--output", "out"),
    "evaluate": ("classifier", "--batch-size", "360"),
    "predict": ("classifier", "img.png"),
    "generate": ("language", "The", "--max-new-tokens", "3"),
    "probe": ("classifier", "--method", "knn"),
    "reconstruct": ("autoencoder", "img.png", "--output", "out"),
    "analyze": ("classifier", "--num-images", "8", "--output", "out"),
    "segment": ("classifier", "img.png", "--size", "16", "--refine", "none", "--output", "out"),
    "evaluate-segmentation": ("classifier", "--data", "folder", "marked", "--refine", "none", "--output", "out"),
    "features": ("language", "--text", "story.txt", "--num-features", "2", "--output", "out"),
    "audit": ("classifier", "--layers", "1", "--num-images", "32", "--num-tokens", "256", "--output", "out"),
    "doctor": ("classifier", "--num-images", "32"),
    "experiment": ("sparsify", "--quick", "--seeds", "2", "--output", "out"),
    "bench image": TINY,
    "bench mae": TINY,
    "bench text": TINY,
    "bench decode": ("--smoke", "--repeats", "1", "--dtypes", "float32"),
    "bench recipe": ("digits", "--smoke", "--steps", "1"),
    "bench curve": ("--tokens", "5", "--no-memory", "--output", "out", *TINY),
    "convert": ("plain", "out.safetensors", "--to-official"),
    "export": ("classifier", "--to", "torch", "--size", "8", "--repeats", "1", "--output", "out"),
    "app": ("classifier", "--space", "out"),
    "recipes": (),
    "models": (),
    "completion": ("bash",),
    "demo": (*SHORT, "--output", "out"),
}
"""Command -> words that make it do little, in a folder with the models and files below."""
OTHER_FORMS = {
    "train --print-config": ("train", "digits", "--print-config"),
    "experiment --settings": ("experiment", "compress", "--settings"),
    "recipes --keys": ("recipes", "--keys"),
    "segment --heads": ("segment", "classifier", "img.png", "--size", "16", "--heads", "--output", "out"),
    "evaluate --text": ("evaluate", "language", "--text", "story.txt"),
}
LONG = {f"bench compare {task}" for task in ("image", "mae", "text", "decode", "recipe")}
"""What times two revisions prints the same kind of result as its task alone; it needs a repository and minutes."""


@pytest.fixture
def world(digits_run, plain_crate, tmp_path, monkeypatch):
    """A folder with models of every kind and something for them to read."""
    from opencrate import CrateImageProcessor, CrateMAEConfig, CrateMAEForPreTraining

    (tmp_path / "classifier").symlink_to(digits_run)
    (tmp_path / "plain").symlink_to(plain_crate)
    config = CrateMAEConfig(image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=1, num_attention_heads=4)
    CrateMAEForPreTraining(config).save_pretrained(tmp_path / "autoencoder")
    CrateImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(
        tmp_path / "autoencoder"
    )
    saved(causal("crate"), tmp_path / "language")
    for file, mode in {"img.png": "RGB", "marked/images/one.png": "RGB", "marked/masks/one.png": "1"}.items():
        write_image(tmp_path / file, 0, 0, mode=mode)
    (tmp_path / "story.txt").write_text(STORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(result, codes=(0,)):
    """What was printed, which is one JSON document in one line without NaN."""
    assert result.code in codes, result.err
    assert len(result.out.splitlines()) == 1

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(result.out, parse_constant=refuse)


@pytest.mark.parametrize("command", LEAVES)
def test_every_command_has_it_with_the_same_words(command):
    found = [action for action in LEAVES[command]._actions if "--format" in action.option_strings]
    assert [list(action.choices) for action in found] == [["text", "json"]] and found[0].default == "text"
    options = {name for action in LEAVES[command]._actions for name in action.option_strings}
    assert "--json" not in options, "one vocabulary"


def test_every_command_is_tried():
    assert {name.split()[0] for name in LEAVES} == COMMANDS.keys()
    assert QUICK.keys() | LONG == LEAVES.keys(), "a new command takes a row of QUICK"


SLOW = ("demo",)  # `train`, then `analyze`


@pytest.mark.parametrize("command", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else []) for one in QUICK])
def test_every_command_prints_one_document(command, world, opencrate):
    if command == "completion":
        pytest.importorskip("argcomplete", reason="needs argcomplete, which the test environment leaves out")
    found = document(opencrate(*command.split(), *QUICK[command], "--format", "json"), (0, 1))
    assert isinstance(found, dict if command not in ("predict", "recipes", "models") else list)
    if "out" in QUICK[command]:
        assert '"out' in json.dumps(found), "it says where the files are"


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_other_forms_print_one_document(form, world, opencrate):
    assert document(opencrate(*OTHER_FORMS[form], "--format", "json"))


def test_errors_leave_standard_output_empty(opencrate, tmp_path):
    result = opencrate("predict", tmp_path / "nowhere", "x.png", "--format", "json")
    assert result.code == 2 and result.out == "" and result.err.startswith("opencrate: error: ")
    assert "text" in opencrate("models", "--format", "table").err

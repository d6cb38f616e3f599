"""Numbers of the command line, recipes and config.json that nobody means: exit code 2, one line, before any work."""

import argparse
import json
import shutil
import time

import pytest

from opencrate import CrateForCausalLM, CrateMAEConfig, CrateMAEForPreTraining, CrateTextConfig
from opencrate.cli.main import _parser

from ..bad_values import NOT_FINITE, NOT_IN_RANGE, complaint, thinned
from ..contract.test_config_values import SMALLEST, cases

WORDS = (
    *("", " ", "x", "nan", "inf", "-inf", "1e400", "-1", "-1e26", "1e26", "9" * 40, "9" * 6000, "0x10", "1_0", "١"),
    *("null", "[1]", "1e", "--", "+", "1.2.3", "-0.5", "1e-320x", "\udcff", "1\n2", "1e99999", "2020-01-01"),
)
"""No number that any option takes, but for seeds, counts and the like in plain digits."""


def numeric_options(above=None, words=""):
    """(command, option, its type) of every option that converts its word."""
    for name, parser in (above or _parser()).commands.items():
        for action in parser._actions:
            if action.type is not None and action.dest not in ("arms",):
                yield f"{words}{name}", action.option_strings[0], action.type
        yield from numeric_options(parser, f"{words}{name} ") if parser.commands else ()


@pytest.mark.parametrize(
    ("command", "option", "kind"), numeric_options(), ids=lambda value: value if type(value) is str else ""
)
def test_no_option_takes_nonsense(command, option, kind):
    assert kind not in (int, float), "options state their range; see common.number_of"
    for word in WORDS:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)) as caught:
            kind(word)
        assert isinstance(caught.value, argparse.ArgumentTypeError) and complaint(str(caught.value)) is None, word


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "x", "y", "--temperature", "inf"],
        ["generate", "x", "y", "--temperature", "1e-30"],
        ["generate", "x", "y", "--top-p", "1.5"],
        ["generate", "x", "y", "--num-beams", "100000"],
        ["generate", "x", "y", "--max-new-tokens", "9999999999"],
        ["reconstruct", "x", "y", "--mask-ratio", "nan"],
        ["analyze", "x", "--eps", "inf"],
        ["analyze", "x", "--layers", "0"],
        ["audit", "x", "--seed=-1"],
        ["features", "x", "--steer", "1:2=1e999"],
        ["predict", "x", "y", "--batch-size", "1000000000"],
        ["ablate", "digits-structure", "--seeds", "0,99999999999"],
        ["convert", "x", "y", "--image-size", "1000000"],
        ["experiment", "compress", "tokens=1000000000"],
        ["experiment", "denoise", "steps=inf"],
        ["experiment", "sparsify", "long_run=1000000000"],
        ["train", "digits", "training.max_grad_norm=1e26"],
        ["train", "digits", "augmentation.cutmix=.inf"],
        ["train", "digits", "model.config.num_hidden_layers=10000000"],
        ["train", "digits", "model.config.hidden_size=1000000000", "--print-config"],
        ["train", "digits", "model.config.num_hidden_layers=4096", "model.config.hidden_size=8192", "--print-config"],
        ["train", "text-demo", "model.config.hidden_size=1048576", "--print-config"],
        ["train", "digits-vit", "model.config.num_hidden_layers=10000000", "--print-config"],
        ["train", "digits-vit", "model.config.hidden_size=-4", "--print-config"],
        ["train", "digits-vit", "model.config.layer_norm_eps=.nan", "--print-config"],
        ["train", "digits-mae-vit", "model.config.hidden_size=x", "--print-config"],
        ["train", "digits", "model.config.ista_num_steps=1000000000", "--print-config"],
        ["train", "digits", "model.config.pool=max", "--print-config"],
        ["train", "digits", "data.image_size=1000000", "--print-config"],
        ["train", "digits", "training.dataloader_num_workers=1000000"],
        ["train", "digits", "training.per_device_train_batch_size=1000000000"],
        ["train", "digits", "training.max_steps=-5"],
        ["train", "digits", "training.num_train_epochs=-1"],
    ],
    ids=lambda words: " ".join(words)[:50],
)
def test_refused_in_one_line_and_soon(opencrate, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    result = opencrate(*words)
    assert result.code == 2 and result.out == "", result
    assert complaint(result.err) is None and result.err.startswith("opencrate: error: "), result.err
    assert time.process_time() - start < 5 and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folders(plain_crate, tmp_path_factory):
    """Configuration class -> a command line that opens a small saved model of it, in a folder of its own."""
    base = tmp_path_factory.mktemp("models")
    shutil.copytree(plain_crate, base / "CrateConfig")
    autoencoder = CrateMAEForPreTraining(CrateMAEConfig(**SMALLEST[CrateMAEConfig]))
    autoencoder.save_pretrained(base / "CrateMAEConfig")
    CrateForCausalLM(CrateTextConfig(**SMALLEST[CrateTextConfig])).save_pretrained(base / "CrateTextConfig")
    return base


def check_folder(opencrate, folders, cls, name, value, refused):
    folder = folders / cls.__name__
    file = folder / "config.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {name: value}))
    try:
        result = opencrate(
            "generate" if cls is CrateTextConfig else "doctor", folder, *(["x"] if cls is CrateTextConfig else [])
        )
    finally:
        file.write_text(before)
    case = (cls.__name__, name, str(value)[:60], result)
    assert result.code in (0, 1, 2) and "failed: " not in result.err, case
    if result.code == 2:
        assert result.out == "" and complaint(result.err) is None, case
    if refused:
        assert result.code == 2 and name in result.err, case


def saved_cases():
    for cls in SMALLEST:
        for name, value, refused in cases(cls):
            if not (isinstance(value, int) and abs(value) > 10**300):  # JSON readers have their own limit
                yield cls, name, value, refused


def test_no_field_of_a_saved_folder_takes_nonsense(opencrate, folders):
    for case in thinned(saved_cases(), 60):
        check_folder(opencrate, folders, *case)


@pytest.mark.slow
def test_no_field_of_a_saved_folder_takes_any_nonsense(opencrate, folders):
    for case in saved_cases():
        check_folder(opencrate, folders, *case)


def test_the_lists_are_used():
    assert len(WORDS) > 20 and len(NOT_FINITE) == 3 and len(NOT_IN_RANGE) > 10
    assert len(list(numeric_options())) > 25

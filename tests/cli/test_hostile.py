"""Every bad input of `hostile` at one of the commands that open it: exit code 2, one line, nothing written or run."""

import io
import shutil
import sys

import pytest

from opencrate.cli.main import main

from . import hostile

FEW = hostile.few_cases()
ALL = hostile.all_cases()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "good"
    folder.mkdir()
    hostile.build(folder)
    return folder


def test_the_good_inputs_are_good(good, capfd, monkeypatch):
    """Without it, every refusal below could have another reason."""
    monkeypatch.chdir(good.parent)
    shutil.copytree(good, "world")
    monkeypatch.chdir("world")
    for words in (
        ("predict", "m", "img.png"),
        ("evaluate", "m", "--data", "data"),
        ("evaluate", "l", "--text", "story.txt"),
        ("reconstruct", "a", "img.png", "--output", "grid"),
        ("convert", "good.pth", "out", *hostile.OFFICIAL),
    ):
        assert main(list(words)) == 0, capfd.readouterr().err


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_few(case, good, tmp_path, capfd, monkeypatch):
    root = tmp_path / "world"
    shutil.copytree(good, root)
    words = case.command(root)
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    before = hostile.snapshot(root)
    capfd.readouterr()
    code = main(words)
    out, err = capfd.readouterr()
    assert not hostile.shortcomings(code, out, err, before, root), err
    assert sys.stdin.read() == "y\n" * 50, "standard input was read, and nobody asked for it"


WITH_CODE = {
    "m": (("config.json", {"auto_map": hostile.ALL_CODE}), ("preprocessor_config.json", hostile.PROCESSOR_WITH_CODE)),
    "a": (("config.json", {"auto_map": hostile.ALL_CODE}), ("preprocessor_config.json", hostile.PROCESSOR_WITH_CODE)),
    "l": (
        ("config.json", {"auto_map": hostile.ALL_CODE}),
        ("tokenizer_config.json", {"auto_map": hostile.ALL_CODE, "tokenizer_class": "EvilTokenizer"}),
        ("generation_config.json", {"custom_generate": "custom_generate/generate.py"}),
    ),
}
"""Files of a folder of a known type that all ask for code of the folder."""
OPENERS = [
    pytest.param(
        kind, words, marks=[] if words[0] in ("predict", "evaluate", "generate", "convert") else pytest.mark.slow
    )
    for kind in ("classifier", "autoencoder", "language")
    for words in hostile.COMMANDS[kind]
]


@pytest.mark.parametrize(
    ("kind", "words"), OPENERS, ids=lambda value: value if isinstance(value, str) else " ".join(value[:2])
)
def test_code_beside_a_known_type_is_never_run(kind, words, good, tmp_path, capfd, monkeypatch):
    root = tmp_path / "world"
    shutil.copytree(good, root)
    hostile.with_code(*WITH_CODE[kind[0] if kind != "classifier" else "m"])(
        root / (kind[0] if kind != "classifier" else "m")
    )
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    code = main([kind[0] if word == "X" and kind != "classifier" else word.replace("X", "m") for word in words])
    assert code in (0, 2), capfd.readouterr().err
    assert not (root / hostile.PAYLOAD).exists(), "code was executed"
    assert sys.stdin.read() == "y\n" * 50, "standard input was read, and nobody asked for it"


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_all(case, good, tmp_path):
    """The whole product, each in a process of its own, which may take a minute."""
    root = tmp_path / "world"
    shutil.copytree(good, root)
    words = case.command(root)
    before = hostile.snapshot(root)
    code, out, err = hostile.run_apart(root, words, 60)
    assert not hostile.shortcomings(code, out, err, before, root), err

"""`opencrate doctor --environment`: what is found about an installation, good ones and broken ones."""

import json
import os
import platform

import pytest
import torch
from packaging.requirements import Requirement

from opencrate.analysis.doctor import installation
from opencrate.analysis.doctor.installation import compared, examine_installation
from opencrate.cli.main import main

FAST = ("eager", "sdpa")


@pytest.fixture
def quick(monkeypatch):
    """Without the implementation that compiles."""
    examine = installation.examine_installation
    monkeypatch.setattr(installation, "examine_installation", lambda **options: examine(FAST, **options))


def by_name(found):
    return {one.check: one for one in found.findings}


@pytest.mark.parametrize(
    ("version", "verdict", "words"),
    [
        ("1.10", "ok", "in range >=1.10,<2"),
        ("1.99.0+cu128", "ok", "in range"),
        ("1.9.7", "fail", "too old"),
        ("2.0", "warn", "too new"),
        ("2.1.0.dev3", "warn", "too new"),
        (None, "fail", "not installed"),
    ],
)
def test_versions_against_bounds(version, verdict, words):
    found = compared(Requirement("some-package<2,>=1.10"), version)
    assert (found.verdict, found.check) == (verdict, "some-package") and words in found.evidence
    assert bool(found.advice) == (verdict != "ok")


def test_this_installation():
    found = examine_installation(FAST)
    parts = by_name(found)
    assert found.healthy(), [one for one in found.findings if one.verdict == "fail"]
    assert platform.python_version() in parts["python"].evidence
    assert parts["torch"].evidence.startswith(torch.__version__) and ">=" in parts["torch"].evidence
    assert found.environment["torch_build"] in parts["torch runs"].evidence
    assert {parts[f"attention {name}"].verdict for name in FAST} == {"ok"}
    assert "extra tensorboard" in parts and "extra test" not in parts
    assert found.environment["torch"] == torch.__version__ and json.dumps(found.to_dict())


def test_no_names_of_this_machine():
    text = json.dumps(examine_installation(("sdpa",)).to_dict())
    assert platform.node() not in text and os.path.expanduser("~") not in text and os.getcwd() not in text


def test_attention_that_is_not_there_is_no_fault():
    found = by_name(examine_installation(("flash_attention_3",)))["attention flash_attention_3"]
    assert found.verdict in ("ok", "not checked") and found.evidence


@pytest.mark.slow
def test_every_attention():
    """The one that compiles too; what a machine lacks is said."""
    heard = []
    found = by_name(examine_installation(progress=heard.append))
    assert [one for one in found if one.startswith("attention ")] == [f"attention {n}" for n in installation.ATTENTION]
    assert len(heard) == 1 and "compiles" in heard[0]


def test_what_does_not_work(monkeypatch, tmp_path):
    versions = {"torch": "2.1.0", "numpy": None, "pandas": "99.0", "opencrate": "0.1.0", "scikit-learn": "1.6"}
    monkeypatch.setattr(installation, "_version", versions.get)
    monkeypatch.setenv("OPENCRATE_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(installation, "attention_gap", lambda name: (0.5, "cpu"))
    found = examine_installation(("eager",))
    parts = by_name(found)
    verdicts = {name: parts[name].verdict for name in ("torch", "numpy", "pandas", "scikit-learn", "attention eager")}
    wanted = {"torch": "fail", "numpy": "fail", "pandas": "ok", "scikit-learn": "ok", "attention eager": "fail"}
    assert verdicts == wanted and not found.healthy()
    assert parts["cache of tokens"].verdict == "fail" and "OPENCRATE_CACHE" in parts["cache of tokens"].advice
    assert all(one.advice for one in found.findings if one.verdict in ("warn", "fail"))


def test_broken_torch_is_a_finding(monkeypatch):
    import opencrate.store.environment

    def broken():
        raise OSError("libtorch.so: cannot open shared object file\nmore")

    monkeypatch.setattr(opencrate.store.environment, "environment", broken)
    found = examine_installation(())
    assert by_name(found)["torch runs"].evidence == "libtorch.so: cannot open shared object file"
    assert not found.healthy() and found.environment == {}


def test_source_without_an_installation(monkeypatch):
    monkeypatch.setattr(installation, "_version", lambda name: None)
    parts = by_name(examine_installation(()))
    assert parts["packages"].verdict == "warn" and "torch" not in parts


def test_damaged_models_fail(monkeypatch):
    models = [{"name": "opencrate/one", "damage": None}, {"name": "opencrate/two", "damage": "model.safetensors: cut"}]
    monkeypatch.setattr(installation, "installed_models", lambda: models)
    found = by_name(examine_installation(()))["opencrate-weights"]
    assert found.verdict == "fail" and found.evidence == "opencrate/two: model.safetensors: cut"
    models[1]["damage"] = None
    assert "2 models" in by_name(examine_installation(()))["opencrate-weights"].evidence


def test_the_command(quick, capfd, monkeypatch):
    assert main(["doctor", "--environment"]) == 0
    text = capfd.readouterr().out
    assert "attention sdpa" in text and text.splitlines()[-1].startswith("this installation: ")
    monkeypatch.setattr(installation, "attention_gap", lambda name: (1.0, "cpu in float32"))
    assert main(["doctor", "--environment", "--format", "json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert not found["healthy"] and found["environment"]["python"] == platform.python_version()
    assert [one["check"] for one in found["findings"] if one["verdict"] == "fail"] == [
        f"attention {name}" for name in FAST
    ]


@pytest.mark.parametrize("words", [[], ["run", "--environment"]])
def test_a_model_or_the_environment(words, capfd):
    assert main(["doctor", *words]) == 2
    assert "--environment" in capfd.readouterr().err


def test_compilers_that_fail_are_said_in_one_line(monkeypatch):
    def fails(name):
        raise RuntimeError("no C++ compiler\n  at /home/somebody/x")

    monkeypatch.setattr(installation, "attention_gap", fails)
    parts = by_name(examine_installation(("sdpa", "flex_attention")))
    assert (parts["attention sdpa"].verdict, parts["attention flex_attention"].verdict) == ("fail", "warn")
    assert parts["attention sdpa"].evidence == "no C++ compiler"

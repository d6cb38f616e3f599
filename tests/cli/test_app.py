"""`opencrate app`: what it refuses before anything starts, and the Space that it writes. The page is in tests/app."""

import importlib.util

import pytest

from opencrate.app import server


@pytest.fixture
def with_gradio(monkeypatch):
    """As if the extra were installed; the page is not started but kept."""
    find, served = importlib.util.find_spec, {}
    there = importlib.util.find_spec("json")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: there if name == "gradio" else find(name, *rest)
    )
    monkeypatch.setattr(server, "serve", lambda shelf, **options: served.update(shelf=shelf, **options))
    return served


def test_without_the_extra(opencrate, plain_crate, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest)
    )
    result = opencrate("app", plain_crate)
    assert result.code == 2 and result.err.count("\n") == 1 and "pip install opencrate[app]" in result.err


def test_what_is_served(opencrate, with_gradio, plain_crate):
    assert opencrate("app", plain_crate).code == 0
    assert list(with_gradio["shelf"].models) == ["crate"]
    assert (with_gradio["host"], with_gradio["port"], with_gradio["max_upload"]) == ("127.0.0.1", None, 100)
    assert opencrate("app", plain_crate, "--port", 8123, "--host", "0.0.0.0", "--max-upload", 5).code == 0
    assert (with_gradio["host"], with_gradio["port"], with_gradio["max_upload"]) == ("0.0.0.0", 8123, 5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--port", "0"), "--port"),
        (("--port", "70000"), "--port"),
        (("--max-upload", "0"), "--max-upload"),
        (("--overwrite",), "--overwrite"),
        (("nothing-here",), "no such folder"),
    ],
)
def test_bad_words(opencrate, with_gradio, plain_crate, words, expected):
    result = opencrate("app", plain_crate, *words)
    assert result.code == 2 and expected in result.err and result.err.count("\n") == 1 and not with_gradio


def test_a_space(opencrate, plain_crate, tmp_path):
    result = opencrate("app", plain_crate, "--space", tmp_path / "space")
    assert result.code == 0 and "requirements.txt" in result.out, result.err
    assert (tmp_path / "space" / "models" / "crate" / "model.safetensors").is_file()
    again = opencrate("app", plain_crate, "--space", tmp_path / "space")
    assert again.code == 2 and "pass --overwrite" in again.err
    assert opencrate("app", plain_crate, "--space", tmp_path / "space", "--overwrite").code == 0

"""evaluate, generate and features on language models, and their bad input."""

import json

import pytest

from ..analysis.language_models import STORY, causal, masked, saved


@pytest.fixture(scope="module")
def crate(tmp_path_factory):
    return saved(causal("crate", steps=10), tmp_path_factory.mktemp("language") / "crate")


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "story.txt"
    file.write_text(STORY)
    return file


def test_evaluate_text(opencrate, crate, story):
    result = opencrate("evaluate", crate, "--text", story, "--stride", 8, "--format", "json")
    found = json.loads(result.out)["text"]
    assert result.code == 0 and found["bytes"] == len(STORY) == found["tokens"] and found["stride"] == 8
    table = opencrate("evaluate", crate, "--text", story, "--document", "line").out
    assert "bits per byte" in table and "60 documents" in table and "windows of 32 tokens, 16 new ones each" in table


def test_a_run_is_evaluated_on_the_text_it_held_out(opencrate, story, tmp_path):
    settings = (f"text.path={story}", "text.block_size=8", "text.validation_fraction=0.25", "text.max_documents=null")
    assert opencrate("train", "text-demo", "--smoke", *settings, "--output", tmp_path / "run").code == 0
    found = json.loads(opencrate("evaluate", tmp_path / "run", "--format", "json").out)["text"]
    assert found["bytes"] == len(STORY) // 4
    assert "the text it held out" in opencrate("evaluate", tmp_path / "run").out
    assert "R^c" in (tmp_path / "run" / "report.html").read_text()
    result = opencrate("analyze", tmp_path / "run", "--num-images", 4, "--block-size", 8)
    assert result.code == 0 and "1 layer on 4 texts, against learned U" in result.out, result


def test_evaluate_lambada_and_masked(opencrate, crate, story, tmp_path):
    lines = [json.dumps({"context": "The cat saw the", "continuation": "dog"})] * 3
    (tmp_path / "lambada.jsonl").write_text("\n".join(lines))
    assert "last-word accuracy" in opencrate("evaluate", crate, "--lambada", tmp_path / "lambada.jsonl").out
    bert = saved(masked(), tmp_path / "bert")
    assert "nats per masked token" in opencrate("evaluate", bert, "--text", story).out
    assert opencrate("evaluate", bert, "--text", story, "--stride", 3).code == 2


def test_generate_streams(opencrate, crate):
    words = ("generate", crate, "The cat", "--max-new-tokens", 12, "--top-k", 5, "--temperature", 0.8)
    first, again = opencrate(*words), opencrate(*words)
    assert first.code == 0 and first.out == again.out and first.out.startswith("The cat")
    assert first.out != opencrate(*words, "--seed", 1).out
    assert opencrate("generate", crate, "The", "--num-beams", 2, "--temperature", 0, "--max-new-tokens", 4).code == 0


def test_features(opencrate, crate, story, tmp_path):
    words = ("features", crate, "--text", story, "--num-features", 4, "--prompt", "The", "--output", tmp_path / "out")
    result = opencrate(*words, "--block-size", 32, "--steer", "2:3=5")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "features.html").is_file() and "8 features drawn at random" in result.out
    found = json.loads((tmp_path / "out" / "features.json").read_text())
    assert [(one["layer"], one["feature"], one["value"]) for one in found["steered"]] == [(2, 3, 5.0)]


def test_bad_input(opencrate, crate, story, digits_run, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"abc\xff")
    for words, reason in (
        (("evaluate", crate), "names no text; say on what by --text TEXT"),
        (("evaluate", digits_run, "--text", story), "an image classifier, which reads no text; give --data IMAGES"),
        (("generate", digits_run, "The"), "an image classifier, not a causal language model"),
        (("evaluate", crate, "--text", tmp_path / "none.txt"), "no such folder or file"),
        (("evaluate", crate, "--text", latin), "at byte 3 (0xff)"),
        (("evaluate", crate, "--text", story, "--context", 64), "--context 64: the model reads 2 to 32"),
        (("evaluate", crate, "--text", story, "--data", "digits"), "--data: names images"),
        (("generate", crate, "T" * 50), "prompt: has 50 tokens, more than the model's context of 32"),
        (("generate", crate, "The", "--top-p", 2), "argument --top-p: '2' is not a number"),
        (("features", crate), "say on what by --text TEXT"),
        (("features", crate, "--text", story, "--steer", "x"), "not of the form LAYER:FEATURE=VALUE"),
    ):
        result = opencrate(*words)
        assert result.code == 2 and reason in result.err and len(result.err.splitlines()) == 1, (words, result.err)

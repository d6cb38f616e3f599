"""`opencrate bench`: each subcommand at tiny size, its table, its files, its errors."""

import json
import subprocess
from pathlib import Path

import pytest

from opencrate.bench.process import OWN_SOURCE
from opencrate.cli.main import main

FAST = ("--smoke", "--dtypes", "float32")


def in_git() -> bool:
    """Whether this source is in a git checkout with a commit."""
    words = ["git", "-C", str(OWN_SOURCE), "ls-files", "--error-unmatch", "opencrate/__init__.py"]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("image", "--modes", "forward"), ("published form", "ViT", "images/s", "GEMM rate, float32")),
        (("mae", "--modes", "forward"), ("published form", "ViTMAE")),
        (("text", "--modes", "step", "--block", "8"), ("published form", "GPT-2", "tokens/s")),
        (("decode",), ("GPT-2 (29,568 parameters) takes", "times as long as ours at equal parameters (29,952)")),
        (("image", "num_hidden_layers=1", "--against", "vit", "--image-size", "8"), ("ViT",)),
    ],
    ids=lambda value: value[0],
)
def test_tasks(opencrate, tmp_path, words, shown):
    done = opencrate("bench", *words, *FAST, "--threads", "1", "--out", tmp_path / "new" / "found.json")
    assert done.code == 0, done.err
    assert all(word in done.out for word in shown), done.out
    assert "threads 1" in done.out.splitlines()[0] and "float32, " in done.err
    found = json.loads((tmp_path / "new" / "found.json").read_text())
    assert found["bench"] == words[0] and found["environment"]["torch"] and found["machine"] in done.out
    assert all(
        len(line["seconds"]) == 2 and line["ratio_min"] <= line["ratio"] <= line["ratio_max"] for line in found["lines"]
    )
    again = opencrate("bench", *words, *FAST, "--out", tmp_path / "new" / "found.json")
    assert again.code == 2 and "--overwrite" in again.err


def test_memory_is_printed(opencrate, tmp_path):
    words = ("--modes", "forward", "--against", "--memory", "--out", tmp_path / "found.json")
    assert opencrate("bench", "image", *FAST, *words).code == 0
    lines = json.loads((tmp_path / "found.json").read_text())["lines"]
    assert all(type(line["memory"]) is int for line in lines)


def test_recipe(opencrate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a user's own runs/ may lie where the tests are started
    done = opencrate(
        "bench", "recipe", "digits", "model.config.num_hidden_layers=1", "--steps", "2", "--out", tmp_path / "r.json"
    )
    assert done.code == 0, done.err
    lines = {line["form"]: line for line in json.loads((tmp_path / "r.json").read_text())["lines"]}
    assert list(lines) == ["loading and augmenting", "forward and backward", "optimizer", "the rest", "the whole step"]
    assert all(len(line["seconds"]) == 2 for line in lines.values())
    parts = [sum(lines[name]["seconds"]) for name in lines]
    assert sum(parts[:-1]) == pytest.approx(parts[-1]) and lines["the whole step"]["ratio"] == 1
    assert lines["optimizer"]["samples"] == 64 and not Path("runs").exists()


def test_recipe_that_accumulates_gradients(opencrate, tmp_path):
    """Several batches make one step."""
    words = ("training.gradient_accumulation_steps=2", "training.per_device_train_batch_size=8", "--steps", "2")
    assert opencrate("bench", "recipe", "digits", *words, "--out", tmp_path / "r.json").code == 0
    lines = json.loads((tmp_path / "r.json").read_text())["lines"]
    assert [len(line["seconds"]) for line in lines] == [2] * 5 and lines[0]["samples"] == 16


def test_curve(opencrate, tmp_path):
    words = ("curve", "--tokens", "5", "17", *FAST, "--no-memory", "--output", tmp_path / "curve")
    done = opencrate("bench", *words)
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "curve").iterdir()}
    assert {"curve.csv", "curve.json", "curve.png"} <= names
    header, *rows = (tmp_path / "curve" / "curve.csv").read_text().splitlines()
    assert (
        header.startswith("tokens,form,mode,dtype")
        and len(rows) == 8
        and "seconds," not in header.replace("_seconds,", "")
    )
    assert (tmp_path / "curve" / "curve.png").read_bytes().startswith(b"\x89PNG")
    again = opencrate("bench", *words)
    assert again.code == 2 and "--overwrite" in again.err


@pytest.mark.skipif(not in_git(), reason="needs a git checkout of the project")
def test_compare_head_with_itself(opencrate, tmp_path):
    words = ("compare", "HEAD", "HEAD", "image", "num_hidden_layers=1", *FAST, "--modes", "forward")
    done = opencrate("bench", *words, "--out", tmp_path / "c.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["reference"] == "HEAD (1)" and found["settings"]["revisions"] == ["HEAD", "HEAD"]
    assert [line["form"] for line in found["lines"]] == ["HEAD (1)", "HEAD (2)"]
    assert {"median_seconds", "ratio", "ratio_min", "ratio_max", "seconds"} <= found["lines"][1].keys()
    listed = subprocess.run(["git", "-C", str(OWN_SOURCE), "worktree", "list"], capture_output=True, text=True)
    assert "opencrate-bench-" not in listed.stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("imag",), "unknown command 'imag'; did you mean 'image'?"),
        (("image", "--dtypes", "float16"), "--dtypes float16: "),
        (("image", "--compile", "fast"), "--compile fast: known: default, max-autotune, reduce-overhead"),
        (("image", "--repeat", "3"), "unknown option '--repeat' of `opencrate bench image`; did you mean '--repeats'?"),
        (("image", "--repeats", "0"), "'0' is not"),
        (("image", "hiden_size=3"), "unknown argument 'hiden_size'; did you mean 'hidden_size'?"),
        (("image", "hidden_size=[3"), "hidden_size"),
        (("image", "--size", "hug"), "unknown CrateConfig size 'hug'"),
        (("text", "--block", "2000"), "--block 2000: the context of this size is 1024 tokens"),
        (("decode", "--prompt", "1000"), "--prompt 1000 and --new 256: the context"),
        (("curve",), "give one of --tokens N and --depth L"),
        (("curve", "--tokens", "6"), "--tokens 6: must be one more than a square number"),
        (("recipe", "digit"), "did you mean 'digits'?"),
        (("compare", "no-such-revision", "HEAD", "image"), "revision 'no-such-revision': "),
        (("compare", "HEAD", "HEAD", "curve"), "unknown command 'curve'"),
        (("image", "--out", "."), "exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_are_one_line(opencrate, words, error):
    done = opencrate("bench", *words)
    assert done.code == 2 and error in done.err and len(done.err.strip().splitlines()) == 1, done.err


@pytest.mark.parametrize("words", [(), ("image",), ("curve",), ("compare",), ("compare", "A", "B", "decode")])
def test_help(capfd, words):
    assert main(["bench", *words, "--help"]) == 0
    assert "usage: opencrate bench" in capfd.readouterr().out

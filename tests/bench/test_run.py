"""Timing in turns, results, memory, sources: at sizes of milliseconds."""

import json
import subprocess

import pytest
import torch

from opencrate import bench
from opencrate.bench import jobs, process, profile, run, sources
from opencrate.bench.result import BenchLine, BenchResult
from opencrate.bench.settings import SMOKE, TASKS, Case
from opencrate.bench.timing import in_turns, pair_ratios, quartiles

FAST = {"smoke": True, "dtypes": ["float32"]}


def test_functions_are_called_in_turns_after_warming_up():
    called, rounds = [], []
    times = in_turns(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3, warm_up=2, told=rounds.append
    )
    assert called == ["a", "a", "b", "b", *["a", "b"] * 3] and rounds == [0, 1, 2]
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}


def test_statistics_of_times():
    assert pair_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)
    line = BenchLine("vit", "step", seconds=[2.0, 6.0, 3.0], reference=[1.0, 2.0, 2.0], samples=8, flops=12.0)
    line.gemm_flops_per_second = 8.0
    found = line.record()
    assert (found["ratio"], found["ratio_min"], found["ratio_max"]) == (2.0, 1.5, 3.0)
    assert found["median_seconds"] == 3.0 and found["samples_per_second"] == 8 / 3 and found["gemm_share"] == 0.5
    empty = BenchLine("vit", "step", failure="no").record()
    assert "ratio" not in empty and empty["gemm_share"] is None


@pytest.mark.parametrize("task", TASKS)
def test_every_form_and_mode(task):
    known = TASKS[task]
    found = getattr(bench, task)(**FAST, modes=known["modes"], against=known["against"])
    forms = [(line.form, line.mode) for line in found.lines]
    foreign = {"vit", "vitmae", "gpt2"}
    wanted = [
        (form, mode)
        for mode in known["modes"]
        for form in ("ours", *known["against"])
        if mode != "layers" or form not in foreign
    ]
    assert forms == wanted and all(len(line.seconds) == 2 and line.failure is None for line in found.lines)
    assert all(line.reference == found.lines[0].seconds for line in found.lines if line.mode == known["modes"][0])
    assert all((line.gemm_share is None) == (task == "decode") for line in found.lines)
    json.dumps(found.as_json(), allow_nan=False)
    assert found.environment["torch"] == torch.__version__ and torch.__version__ in found.machine


def test_bfloat16_and_threads():
    before = torch.get_num_threads()
    found = bench.image(smoke=True, dtypes=["bfloat16"], modes=["forward"], against=[], threads=1)
    assert "threads 1" in found.machine and torch.get_num_threads() == before
    assert [line.dtype for line in found.lines] == ["bfloat16"]


def test_slow_types_are_not_the_default(monkeypatch):
    for has, wanted in ((False, ["float32"]), (True, ["float32", "bfloat16"])):
        monkeypatch.setattr("opencrate.bench.machine.has_half_instructions", lambda has=has: has)
        if not torch.cuda.is_available():
            assert list(dict.fromkeys(case.dtype for case in run.cases_of("image"))) == wanted


def test_compiled_forms_and_those_that_do_not_compile(monkeypatch):
    def compile_(model, mode):
        if "ViT" in type(model).__name__:
            raise RuntimeError("no\nmore words")
        return model

    monkeypatch.setattr(torch, "compile", compile_)
    found = bench.image(**FAST, modes=["forward"], against=["vit"], compiled=["default"])
    assert [(line.form, line.compiled, line.failure) for line in found.lines] == [
        ("ours", None, None),
        ("vit", None, None),
        ("ours", "default", None),
        ("vit", "default", "RuntimeError: no"),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtypes": ["float16"]}, "dtypes=float16: "),
        ({"modes": ["backward"]}, "modes=backward: "),
        ({"against": ["bert"]}, "against=bert: "),
        ({"compiled": ["fast"]}, "compiled=fast: "),
        ({"size": "huge"}, "unknown CrateConfig size 'huge'"),
        ({"config": {"hiden_size": 3}}, "unknown argument 'hiden_size'; did you mean 'hidden_size'"),
    ],
)
def test_bad_words_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        bench.image(**{**FAST, **options})


def test_lengths_beyond_the_context():
    with pytest.raises(ValueError, match="block=65: the context of this size is 64 tokens"):
        bench.text(**FAST, block=65)
    with pytest.raises(ValueError, match="prompt=60 and new=5: the context"):
        bench.decode(**FAST, prompt=60, new=5)
    with pytest.raises(ValueError, match="compiled: generation is timed eagerly"):
        bench.decode(**FAST, compiled=["default"])
    with pytest.raises(ValueError, match="task=sound: "):
        run.bench("sound")


def test_curve_checks_its_points_first():
    for options in ({}, {"tokens": [5], "depth": [1]}):
        with pytest.raises(ValueError, match="give one of `tokens` and `depth`"):
            bench.curve(**options, smoke=True)
    with pytest.raises(ValueError, match=r"tokens=6: must be one more than a square number.*5 and 10 are"):
        bench.curve(tokens=[5, 6], smoke=True)


def test_curve_changes_depth():
    found = bench.curve(depth=[1, 3], **FAST, modes=["forward"], memory=False)
    assert [(line.form, line.point) for line in found.lines] == [
        *(("ours", {"depth": 1}), ("vit", {"depth": 1})),
        *(("ours", {"depth": 3}), ("vit", {"depth": 3})),
    ]
    assert found.lines[2].parameters > found.lines[0].parameters


# --- memory and other processes


def test_memory_of_a_step_in_a_process_of_its_own():
    """Gradients are as large as the weights, here 8 MiB, which are there before."""
    config = {**SMOKE["image"], "hidden_size": 512, "num_attention_heads": 2}
    settings = run.settings_of("image", None, 2, config)
    found = process.peak_memory(settings, Case("ours", "step"))
    with torch.device("meta"):
        weights = 4 * sum(one.numel() for one in jobs.build(settings, "ours").parameters())
    assert weights < found < 10 * weights


def test_a_worker_says_what_is_wrong():
    settings = run.settings_of("image", None, None, {}, smoke=True)
    with process.WorkerProcess(settings) as worker:
        with pytest.raises(ValueError, match="modes=layers: is for the forms of CRATE, not for vit"):
            worker.prepare(Case("vit", "layers"))
        with pytest.raises(process.WorkerError, match="AttributeError"):
            worker.ask("nothing")
        assert worker.prepare(Case("ours", "forward"))["samples"] == 2 and worker.time() > 0
        with pytest.raises(process.WorkerError, match=r"the process that was to __class__ ended|TypeError"):
            worker.ask("__class__", wrong=1)


# --- revisions


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a package in its first commit and none in its second."""
    place = tmp_path / "repository"
    (place / "src" / "opencrate").mkdir(parents=True)
    (place / "src" / "opencrate" / "__init__.py").write_text("__version__ = 'first'\n")
    git(tmp_path, "init", "-q", str(place))
    git(place, "add", "-A")
    git(place, "commit", "-q", "-m", "first")
    git(place, "tag", "v1")
    git(place, "rm", "-q", "-r", "src")
    git(place, "commit", "-q", "-m", "second", "--allow-empty")
    monkeypatch.setattr(sources, "_repository", lambda name: place)
    return place


def worktrees(place):
    done = subprocess.run(["git", "-C", str(place), "worktree", "list"], check=True, capture_output=True, text=True)
    return len(done.stdout.splitlines())


def test_worktree_of_a_revision_goes_away(repository):
    with sources.source_of("v1") as source:
        assert (source / "opencrate" / "__init__.py").read_text() == "__version__ = 'first'\n"
        assert worktrees(repository) == 2
    assert worktrees(repository) == 1 and not source.exists()
    with pytest.raises(KeyboardInterrupt), sources.source_of("v1"):
        raise KeyboardInterrupt
    assert worktrees(repository) == 1


def test_revisions_that_cannot_be_used(repository):
    with pytest.raises(ValueError, match="revision 'HEAD': holds no src/opencrate"), sources.source_of("HEAD"):
        pass
    for name in ("nothing", "--help", ""):
        with (
            pytest.raises(ValueError, match=f"revision '{name}': is no commit, branch or tag"),
            sources.source_of(name),
        ):
            pass
    assert worktrees(repository) == 1


def test_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "_git", lambda *words: "")
    with pytest.raises(
        ValueError, match="is not in a git checkout of the project; run from a clone, or give two folders"
    ):
        bench.compare("HEAD", "HEAD~1", "image", smoke=True)
    with pytest.raises(ValueError, match="holds no src/opencrate; give another revision or folder"):
        bench.compare(str(tmp_path), str(tmp_path), "image", smoke=True)


def test_a_revision_without_the_models(tmp_path):
    (tmp_path / "opencrate").mkdir()
    (tmp_path / "opencrate" / "__init__.py").write_text("__version__ = '0'\n")
    words = "cannot run `bench image` of this version: AttributeError.*compare with a later revision"
    with pytest.raises(ValueError, match=words):
        bench.compare(str(tmp_path), str(process.OWN_SOURCE), "image", **FAST, modes=["forward"])


@pytest.mark.slow
def test_compare_the_steps_of_a_recipe():
    own = str(process.OWN_SOURCE)
    found = bench.compare_recipe(own, own, "digits", ["training.gradient_accumulation_steps=2"], repeats=3)
    assert [len(line.seconds) for line in found.lines] == [3, 3] and found.lines[0].samples == 128
    assert found.lines[0].dtype == "float32" and found.unit == "samples"


@pytest.mark.parametrize("batches", [1, 2])
def test_a_gate_is_passed_once_before_every_step(batches):
    """Also where several batches make one step, and before the first of all."""
    steps = []
    clock = profile.Clock(lambda: steps.append(len(clock.steps)))
    words = [f"training.gradient_accumulation_steps={batches}", "model.config.num_hidden_layers=1"]
    with profile.timed_trainer("digits", words, 3, False, clock) as trainer:
        trainer.train()
    assert steps[:3] == [0, 1, 2] and len(clock.steps) == 3
    for step in clock.steps:
        assert step[profile.WHOLE] == pytest.approx(sum(step.values()) - step[profile.WHOLE]) and min(step.values()) > 0


@pytest.mark.slow  # the command's test compares a revision with itself
def test_compare_two_folders():
    own = str(process.OWN_SOURCE)
    found = bench.compare(own, own, "text", **FAST, modes=["step"])
    assert [line.form for line in found.lines] == [f"{own} (1)", f"{own} (2)"] and found.unit == "tokens"
    assert all(len(line.seconds) == 2 and len(line.ratios) == 2 for line in found.lines)
    assert found.settings["revisions"] == [own, own] and found.lines[0].ratios == [1.0, 1.0]
    assert isinstance(found, BenchResult) and found.reference == f"{own} (1)"

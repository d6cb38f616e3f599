"""What shells offer: asked as they ask, by the script that `opencrate completion` prints."""

import importlib.util
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from opencrate.cli import completion
from opencrate.cli.main import COMMANDS
from opencrate.recipe.load import shipped_recipes

needs_argcomplete = pytest.mark.skipif(
    importlib.util.find_spec("argcomplete") is None, reason="needs argcomplete, which the test environment leaves out"
)


def needs(shell):
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"needs {shell}")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A PATH with `opencrate` on it, a working folder with one file, and where to find the scripts."""
    folder = tmp_path_factory.mktemp("shell")
    command = folder / "bin" / "opencrate"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m opencrate "$@"\n')
    command.chmod(0o755)
    (folder / "work").mkdir()
    (folder / "work" / "digital.yaml").write_text("")
    found = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    for shell in completion.SHELLS:
        words = [str(command), "completion", shell]
        done = subprocess.run(words, env=found, capture_output=True, text=True, check=True)
        (folder / shell).write_text(done.stdout)
    return folder, found


def offered_by_bash(environment, line):
    folder, variables = environment
    asks = """
        source "$SCRIPT"
        read -r -a COMP_WORDS <<< "$COMP_LINE"
        [[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
        COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        export COMP_LINE COMP_POINT COMP_TYPE
        complete -p opencrate > /dev/null || exit 3
        _python_argcomplete opencrate "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", asks],
        env={**variables, "SCRIPT": str(folder / "bash"), "COMP_LINE": line},
        cwd=folder / "work",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return {word.strip() for word in done.stdout.splitlines()}


@needs_argcomplete
@needs("bash")
@pytest.mark.parametrize(
    ("line", "wanted", "unwanted"),
    [
        ("opencrate ", set(COMMANDS), {"classification"}),
        ("opencrate ev", {"evaluate", "evaluate-segmentation"}, {"train"}),
        ("opencrate train dig", {"digits", "digits-certified", "digital.yaml"}, {"imagefolder"}),
        ("opencrate finetune run imagefol", {"imagefolder"}, set()),
        ("opencrate ablate digits-st", {"digits-structure"}, {"digits"}),
        ("opencrate train digits --s", {"--smoke", "--skip-bad"}, {"--output"}),
        ("opencrate evaluate run --format ", {"text", "json"}, {"digital.yaml"}),
        ("opencrate export run --to ", {"torch", "onnx", "int8", "openvino"}, {"digital.yaml"}),
        ("opencrate experiment sp", {"sparsify"}, set()),
        ("opencrate bench com", {"compare"}, set()),
        ("opencrate bench recipe dig", {"digits"}, set()),
        ("opencrate convert file folder --family crate_m", {"crate_mae"}, {"crate"}),
    ],
)
def test_bash(environment, line, wanted, unwanted):
    found = offered_by_bash(environment, line)
    assert wanted <= found, found
    assert not unwanted & found


@needs_argcomplete
@needs("bash")
def test_bash_offers_packaged_models(environment, tmp_path):
    """The package as it is when installed: anything that lists names."""
    folder, variables = environment
    (tmp_path / "opencrate_weights.py").write_text(
        "def manifest():\n    return {'digits': {}, 'shakespeare-alpha': {}}\n"
    )
    path = f"{tmp_path}{os.pathsep}{variables['PYTHONPATH']}"
    shells = folder, {**variables, "PYTHONPATH": path}
    assert offered_by_bash(shells, "opencrate predict opencrate/d") == {"opencrate/digits"}
    assert offered_by_bash(shells, "opencrate analyze run --compare opencrate/s") == {"opencrate/shakespeare-alpha"}


@needs_argcomplete
@needs("fish")
def test_fish(environment):
    folder, variables = environment
    asks = f"source {folder / 'fish'}; complete --do-complete 'opencrate train digits-cert'"
    done = subprocess.run(["fish", "--no-config", "-c", asks], env=variables, capture_output=True, text=True)
    assert "digits-certified" in done.stdout.split()


@needs_argcomplete
@needs("zsh")
def test_zsh(environment):
    """zsh shows what it offers only to a terminal; that the script is read and takes the command is tested."""
    folder, variables = environment
    asks = f"autoload -U compinit && compinit -u -D && source {folder / 'zsh'} && print -r -- $_comps[opencrate]"
    done = subprocess.run(["zsh", "-f", "-c", asks], env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and "argcomplete" in done.stdout, done.stderr


def test_names_come_without_heavy_imports():
    """A shell waits for them at every key."""
    code = (
        "import sys; sys.argv[0] = 'opencrate'; from opencrate.cli import completion;"
        "from opencrate.cli.main import _parser; _parser();"
        "[list(names()) for names in completion._NAMES.values()];"
        "print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_are_those_that_commands_take():
    found = {name: list(names()) for name, names in completion._NAMES.items() if name != "model"}
    assert found["recipe"] == list(shipped_recipes()) and "digits-structure" in found["sweep"]
    assert "crate_mae" in found["family"] and "" not in found["family"] and "sparsify" in found["name"]


def test_without_the_library_it_says_so(opencrate, monkeypatch):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    result = opencrate("completion", "bash")
    assert (result.code, result.out) == (2, "")
    assert result.err == "opencrate: error: argcomplete is not installed; `pip install opencrate[completion]`\n"


def test_unknown_shell(opencrate):
    assert "known: bash, fish, zsh" in opencrate("completion", "nushell").err


def test_only_a_shell_is_answered(opencrate, monkeypatch):
    called = []
    monkeypatch.setattr(
        completion, "_argcomplete", lambda: SimpleNamespace(autocomplete=lambda *a, **b: called.append(a))
    )
    opencrate("recipes")
    assert not called
    monkeypatch.setenv(completion.VARIABLE, "1")
    opencrate("recipes")
    assert len(called) == 1

"""The examples of docs/analysis.md run, and its command lines are accepted."""

import re
import shlex
from pathlib import Path

import pytest

from opencrate.cli.main import _parse, _parser

PAGE = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("opencrate analyze")]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, capsys):
    exec(compile(EXAMPLES[number], f"docs/analysis.md, example {number}", "exec"), {})
    said = re.findall(r"print\(.*\)\s+# (.*)", EXAMPLES[number])
    if number == 0:
        assert capsys.readouterr().out.startswith(said[0])
    elif number == 1:
        assert capsys.readouterr().out.strip() == said[0]


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_accepted(line):
    assert _parse(shlex.split(line, comments=True)[1:], _parser()).command == "analyze"

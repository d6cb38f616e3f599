"""The examples of docs/analysis.md run."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, capsys):
    exec(compile(EXAMPLES[number], f"docs/analysis.md, example {number}", "exec"), {})
    said = re.findall(r"print\(.*\)\s+# (.*)", EXAMPLES[number])
    if number == 0:
        assert capsys.readouterr().out.startswith(said[0])
    elif number == 1:
        assert capsys.readouterr().out.strip() == said[0]

"""Every command line in the documents is accepted by the command's own parser; recipes and settings are read too."""

import re
import shlex
from pathlib import Path

import pytest

from opencrate.cli.main import COMMANDS, _parse, _parser
from opencrate.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "results"]  # placeholders there
INLINE = {"figures.md", "faq.md", "index.md"}
"""Pages whose `opencrate ...` words within a line are whole commands too; elsewhere they may be parts of one."""
RECIPE = ("train", "finetune")


def _commands(page: Path) -> list[str]:
    """The command lines of a page; those with alternatives in brackets, which describe a usage, are left out."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    found = [line for line in lines if re.match(r"opencrate [a-z]", line)]
    if page.name in INLINE:
        found += re.findall(r"`(opencrate [a-z][^`]*)`", page.read_text("utf-8"))
    return [line for line in found if not re.search(r"[\[{|]|\.\.\.", line)]


CASES = [(page.relative_to(ROOT / "docs").as_posix(), line) for page in PAGES for line in _commands(page)]


def test_there_are_commands():
    assert len(CASES) > 50
    assert {name for name, _ in CASES} >= {"figures.md", "faq.md", "analysis.md", "segmentation.md"}


@pytest.mark.parametrize(("page", "line"), CASES, ids=[f"{page}: {line}" for page, line in CASES])
def test_command_is_accepted(page, line):
    arguments = _parse(shlex.split(line, comments=True)[1:], _parser())
    if arguments is None:  # --help
        return
    assert arguments.command in COMMANDS
    recipe = getattr(arguments, "recipe", None)
    if arguments.command in RECIPE and recipe and not recipe.endswith(".yaml"):
        assert load_recipe(recipe, arguments.overrides)

"""Print what makes a shell complete `opencrate`: commands, options, recipes, and the names of packaged models.

  eval "$(opencrate completion bash)"                                          in ~/.bashrc
  eval "$(opencrate completion zsh)"                                           in ~/.zshrc, after compinit
  opencrate completion fish > ~/.config/fish/completions/opencrate.fish        once

It is made by argcomplete, which the extra `completion` installs: `pip install opencrate[completion]`. A model or a
recipe may also be a path, so files are offered beside the names.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from typing import Any

from .common import Parser, print_result

HELP = "print what makes bash, zsh or fish complete this command"
SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_ARGCOMPLETE"
"""What the shell sets while it asks what a word could become."""


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate completion`."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    script = _argcomplete().shellcode(["opencrate"], shell=arguments.shell)
    print_result(arguments, {"shell": arguments.shell, "script": script}, lambda: print(script))
    return 0


def complete(parser: Parser) -> None:
    """Where a shell asks, answer it and end the process; else do nothing."""
    if VARIABLE not in os.environ:
        return
    for leaf in parser.innermost:
        for action in leaf._actions:
            if (names := _NAMES.get(action.dest)) and action.choices is None:
                action.completer = _with_files(names)  # type: ignore[attr-defined]  # where argcomplete looks
    _argcomplete().autocomplete(parser, always_complete_options="long")


def _argcomplete() -> Any:
    try:
        import argcomplete  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("argcomplete is not installed; `pip install opencrate[completion]`") from error
    return argcomplete


def _with_files(names: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    """The names and the files that begin with what was typed."""

    def found(prefix: str, **context: Any) -> list[str]:
        from argcomplete.completers import FilesCompleter  # pyright: ignore[reportMissingImports]

        return [*(name for name in names() if name.startswith(prefix)), *FilesCompleter()(prefix)]

    return found


def _recipes() -> list[str]:
    from ..recipe.load import shipped_recipes

    return list(shipped_recipes())


def _sweeps() -> list[str]:
    from ..recipe.load import shipped_sweeps

    return list(shipped_sweeps())


def _models() -> list[str]:
    from .._weights import OWNER, weights_package

    package = weights_package()
    return [] if package is None else [OWNER + name for name in package.manifest()]


def _experiments() -> tuple[str, ...]:
    from .experiment import NAMES

    return NAMES


def _families() -> Iterable[str]:
    from .convert import FAMILIES

    return FAMILIES.replace(" or ", ", ").split(", ")


_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "recipe": _recipes,
    "sweep": _sweeps,
    **dict.fromkeys(("model", "models", "compare"), _models),
    "name": _experiments,
    "family": _families,
}
"""Argument -> what its names are; one with `choices` needs no such function."""

"""The `opencrate` command.

Exit codes: 0 done, 2 bad input, 1 a run that failed, 130 interrupted. Errors are one line on standard error.
Commands import torch and transformers only when they run, so that help, recipes and bad options answer at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from .._files import one_line, os_reason, printable, shown
from .common import Parser, in_options, log_to_stderr, reject_unknown
from .completion import complete

_NAMES = ("train", "finetune", "ablate", "evaluate", "predict", "generate", "probe", "reconstruct", "analyze")
_NAMES += ("segment", "evaluate-segmentation", "features", "audit", "doctor", "experiment", "bench", "convert")
_NAMES += ("export", "app", "recipes", "models", "completion", "demo")
COMMANDS = {name: import_module(f".{name.replace('-', '_')}", __package__) for name in _NAMES}
"""Name -> the module with `HELP`, `add_arguments` and `run`, in the order of the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default that of the process, without its first word; the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # names that are not UTF-8 are shown escaped, without an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in argv or os.environ.get("OPENCRATE_DEBUG") == "1"
    parser = _parser()
    try:
        complete(parser)
        arguments = _parse(argv, parser)
        if arguments is None:
            return 0
        parser = parser.chosen(arguments)
        log_to_stderr(parser)
        arguments.parser = parser
        return COMMANDS[arguments.command].run(arguments)
    except KeyboardInterrupt as error:
        return _fail(f"interrupted: {_one_line(error, parser)}" if error.args else "interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        words = _one_line(error, parser)
        if _is_bad_input(error):
            return _fail(f"error: {words}", 2)
        if getattr(error, "errno", None) == errno.ENOSPC:
            return _fail(f"failed: {words}", 1)
        return _fail(f"failed: {type(error).__name__}: {words}{'' if debug else ' (--debug shows where)'}", 1)


_OF_PATHS = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_OF_PATHS |= {errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EEXIST, errno.EINVAL, errno.EILSEQ, errno.EIO, errno.ENXIO}
"""What the system says about a path that the user gave: not there, not allowed, not of that kind."""


def _is_bad_input(error: Exception) -> bool:
    """Whether an error is about user input; configuration classes do not raise `ValueError`."""
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        return error.errno in _OF_PATHS or isinstance(error, FileNotFoundError)
    if isinstance(error, ValueError):
        return True
    from huggingface_hub.errors import StrictDataclassError

    return isinstance(error, StrictDataclassError)


def _parse(argv: list[str], parser: Parser) -> argparse.Namespace | None:
    """The checked arguments; `None` for --help and --version."""
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except SystemExit:  # argparse's way to end after --help and --version; errors are ValueErrors here
        return None
    chosen = parser.chosen(arguments)
    arguments.typed = printable(" ".join(["opencrate", *argv]))
    arguments.overrides = [word for word in unknown if "=" in word and not word.startswith("-")]
    accepted = arguments.overrides if chosen.takes_overrides else []
    reject_unknown([word for word in unknown if word not in accepted], chosen)
    return arguments


def _parser() -> Parser:
    parser = Parser(
        prog="opencrate",
        description="White-box transformers: train, evaluate, explain and convert CRATE models.",
        epilog="`opencrate COMMAND --help` explains one command. Start with `opencrate demo`.",
    )
    parser.add_argument("--version", action="version", version=f"opencrate {__version__}")
    subparsers = parser.add_commands("command")
    for name, module in COMMANDS.items():
        command = subparsers.add_parser(name, help=module.HELP, description=module.__doc__)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(command)
        for innermost in command.innermost:
            innermost.add_format()
    return parser


def _one_line(error: BaseException, parser: Parser) -> str:
    text = in_options(str(error), parser)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{shown(error.filename)}: {os_reason(error)}; check the path and its permissions"
    elif isinstance(error, OSError) and error.errno:
        text = f"{os_reason(error)}; check the files and the disk"
    if isinstance(error, UnicodeEncodeError):
        text = f"{shown(error.object)}: contains bytes that are not UTF-8; rename it"
    if text.startswith("Caught ") and "Traceback" in text:  # from a data loading process: its last line says it
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return one_line(text) or type(error).__name__


def _fail(message: str, code: int) -> int:
    print(f"opencrate: {message}", file=sys.stderr)
    return code

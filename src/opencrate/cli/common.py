"""What the commands share: a parser that raises instead of exiting, quiet libraries, tables."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .._files import locate, one_line, path_problem, printable, read_standard_input, shown
from .._suggest import suggest
from .._values import BatchSize, Count, Pixels, Seed, allowed, fitted, number_in, shown_value
from .._weights import is_packaged_name


class Parser(argparse.ArgumentParser):
    """argparse with whole option names only, and errors as `ValueError` with a suggestion."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options})
        self.takes_overrides = False  # whether bare `key=value` words are accepted

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print before it exits."""
        raise ValueError(f"{message}; `{self.prog} --help` lists what is allowed")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            is_command = isinstance(action, argparse._SubParsersAction)
            what = "command" if is_command else (action.option_strings or [action.dest])[0]
            raise ValueError(f"unknown {what} '{value}'; {suggest(str(value), map(str, action.choices))}")

    def add_commands(self, dest: str) -> argparse._SubParsersAction:
        """Commands below this one; the name of the chosen one becomes `arguments.<dest>`."""
        return self.add_subparsers(dest=dest, metavar="COMMAND", required=True, parser_class=Parser)

    @property
    def commands(self) -> dict[str, Parser]:
        """The parsers of the commands below this one, by name."""
        found = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return dict(found[0].choices) if found else {}

    @property
    def innermost(self) -> list[Parser]:
        """The parsers below which there are no commands; this one where it has none."""
        return [one for command in self.commands.values() for one in command.innermost] or [self]

    def chosen(self, arguments: argparse.Namespace) -> Parser:
        """The parser of the innermost command that was given."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices[getattr(arguments, action.dest)].chosen(arguments)
        return self

    def add_format(self) -> None:
        """--format, which every command takes; see `print_result`."""
        words = "what is printed: text, or one JSON document (default: text)"
        self.add_argument("--format", choices=("text", "json"), default="text", help=words)

    def add_model_and_images(self) -> None:
        """RUN, --data and --skip-bad: what every command that reads labelled images takes."""
        add = self.add_argument
        add("model", metavar="RUN", help="run directory, saved folder, or opencrate/name")
        add(
            "--data",
            metavar="IMAGES",
            help="labelled images: anything a recipe's data.path takes (default: the run's own data)",
        )
        add("--skip-bad", action="store_true", help="leave out unreadable images, named and counted")

    def add_split(self) -> None:
        """--split."""
        self.add_argument(
            "--split", choices=("train", "validation", "test"), default="test", help="part of the run's own data"
        )

    def add_inputs(self) -> None:
        """What a model is measured on without labels: images or a text, and how they are read."""
        add = self.add_argument
        add("--data", metavar="IMAGES", help="images, as a recipe's data.path (default: the run's own data)")
        add("--skip-bad", action="store_true", help="leave out unreadable images, named and counted")
        self.add_split()
        add("--text", metavar="TEXT", help="for a model that reads text: stdlib, a file, a folder, or hf://owner/name")
        add("--tokenizer", metavar="FOLDER", help="tokenizer, where the model has none")
        add("--block-size", type=positive_int, default=128, metavar="N", help="tokens per text")

    def add_images(self) -> None:
        """IMAGE ... and --skip-bad: what every command that reads unlabelled image files takes."""
        self.add_argument("inputs", metavar="IMAGE", nargs="+", help="image files or folders of them; - reads a list")
        self.add_argument("--skip-bad", action="store_true", help="leave out unreadable images, named and counted")

    def add_masks(self) -> None:
        """How masks are made: the layer, what is compared, the size, and how masks are refined."""
        add = self.add_argument
        add("--layer", type=positive_int, default=-1, metavar="L", help="a layer's number from 1 (default: the last)")
        add("--features", choices=("keys", "tokens", "codes"), default="keys", help="what is compared (default: keys)")
        add("--size", type=positive_int, metavar="N", help="pixels of the shorter side (default: 480, or 60 patches)")
        add("--square", action="store_true", help="both sides of that size, as the published code")
        add("--stride", type=positive_int, metavar="N", help="pixels from patch to patch, for finer masks; divides it")
        add("--refine", choices=("guided", "crf", "none"), default="guided", help="default: guided")
        add("--num-masks", type=positive_int, default=3, metavar="N", help="cuts of MaskCut (default: 3)")

    def add_text(self) -> None:
        """--text and how it is read."""
        add = self.add_argument
        add(
            "--text",
            metavar="TEXT",
            help="for a language model: stdlib, a text, .jsonl or .parquet file, a folder of them, or hf://owner/name",
        )
        add("--text-column", metavar="NAME", help="column of a table's texts")
        add(
            "--document",
            choices=("file", "paragraph", "line"),
            default="file",
            help="what one document of a text file is",
        )
        add("--tokenizer", metavar="FOLDER", help="tokenizer, where the model has none")


def reject_unknown(words: Sequence[str], parser: Parser) -> None:
    """Raise `ValueError` for words that no argument took, with the nearest option."""
    options = [word for word in words if word.startswith("-")]
    if options:
        name = options[0].partition("=")[0]
        known = [each for action in parser._actions for each in action.option_strings if each.startswith("--")]
        raise ValueError(f"unknown option '{name}' of `{parser.prog}`; {suggest(name, known)}")
    if words:
        raise ValueError(f"unexpected argument '{words[0]}'; `{parser.prog} --help` lists what is allowed")


def prepare_libraries(debug: bool = False) -> None:
    """Register the models with transformers, and keep the libraries' own chatter off the terminal."""
    import opencrate

    opencrate.register_auto_classes()
    if debug:
        return
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)


_ARGUMENTS = {"num_inputs": "num_images", "output_dir": "output", "documents": "text", "compiled": "compile"}
_ARGUMENTS |= {"layout": "data"}
"""Arguments of the library -> the options that fill them, where the names differ."""


def in_options(text: str, parser: Parser) -> str:
    """A library's message in the words of a command: `name=value` and `` `name` `` become the option's name.

    >>> parser = Parser(prog="opencrate")
    >>> _ = parser.add_argument("--overwrite", action="store_true")
    >>> _ = parser.add_argument("--num-images", metavar="N")
    >>> in_options("there already; pass overwrite=True, or give `num_inputs`", parser)
    'there already; pass --overwrite, or give --num-images N'
    >>> in_options("num_inputs=9: only 5 there", parser)
    '--num-images 9: only 5 there'
    """
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    actions |= {name: actions[dest] for name, dest in _ARGUMENTS.items() if dest in actions}
    names = "|".join(actions)

    def named(found: re.Match[str]) -> str:
        action = actions[found[1]]
        return f"{action.option_strings[-1]} {action.metavar or ''}".strip()

    def given(found: re.Match[str]) -> str:
        return actions[found[1]].option_strings[-1] + ("" if found[2] else " ")

    text = re.sub(rf"`({names})`", named, text)
    # not the keys of a recipe, nor what a user typed
    return re.sub(rf"(?<![\w.`'\"(/-])({names})=(True\b)?", given, text)


def log_to_stderr(parser: Parser) -> None:
    """Show what the package itself has to say (weights loaded, images skipped); of several processes the first."""
    logger = logging.getLogger("opencrate")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(parser))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


class _OneLine(logging.Formatter):
    """A message in one printable line, whatever names it holds, in the words of a command."""

    def __init__(self, parser: Parser) -> None:
        super().__init__("opencrate: %(message)s")
        self._parser = parser

    def format(self, record: logging.LogRecord) -> str:
        return one_line(in_options(super().format(record), self._parser))


def say(text: str) -> None:
    """Print lines on standard output with the control characters of names escaped."""
    print(printable(text))


def note(text: str) -> None:
    """Print what is no result, such as what is being done, as one line on standard error."""
    print(one_line(f"opencrate: {text}"), file=sys.stderr, flush=True)


def print_result(arguments: argparse.Namespace, document: Any, show: Callable[[], object]) -> None:
    """The result of a command on standard output: as one JSON document in one line, or as `show` prints it.

    Frames, dataclasses, tensors and paths become plain values, NaN becomes null and an infinity its name.
    """
    if arguments.format == "text":
        show()
        return
    from ..reports.tables import plain

    print(json.dumps(plain(document), allow_nan=False))


def inputs_of(arguments: argparse.Namespace) -> Any:
    """What the options of `Parser.add_inputs` name, as `store.inputs.Inputs`."""
    from ..store.inputs import Inputs

    names = ("data", "split", "skip_bad", "text", "tokenizer", "block_size")
    return Inputs(**{name: getattr(arguments, name) for name in names})


def text_of(arguments: argparse.Namespace) -> Any:
    """What the options of `Parser.add_text` name, as `TextData`; `None` for what the run held out."""
    from ..data.options import TextData

    return arguments.text and TextData(arguments.text, arguments.text_column, arguments.document)


def named_files(inputs: list[str], skip_missing: bool) -> list[Path]:
    """The image files that the words name, in order; missing ones too when they are to be skipped later."""
    from ..data.images.files import LeftOut, image_files

    files: list[Path] = []
    for name in _names(inputs):
        path = Path(name).expanduser()
        if not skip_missing and (problem := path_problem(path)):
            raise ValueError(f"{shown(name)}: {problem}")
        left_out = LeftOut(path)
        found = image_files(path, left_out) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{shown(name)}: no image files in this folder, but {str(left_out) or 'nothing at all'}")
        if str(left_out):
            note(f"{name}: left out {left_out}")
        files += found
    return files


def _names(inputs: list[str]) -> list[str]:
    """The words, with standard input's lines in the place of `-`."""
    if "-" not in inputs:
        return inputs
    if inputs.count("-") > 1:
        raise ValueError("'-' stands twice; standard input can be read once")
    lines = [line for line in read_standard_input().splitlines() if line.strip()]
    place = inputs.index("-")
    if not lines and len(inputs) == 1:
        raise ValueError("'-': standard input names no files; give one file or folder a line")
    return [*inputs[:place], *lines, *inputs[place + 1 :]]


def report_skipped(skipped: list[str], total: int) -> None:
    """Name what was left out, and count it, on standard error."""
    for reason in skipped:
        note(f"skipped {reason}")
    if skipped:
        note(f"skipped {len(skipped)} of {total} images")


def output_folder(arguments: argparse.Namespace, name: str) -> Path:
    """--output, or the folder `name` inside the model's own; a model of the Hub has none."""
    if arguments.output:
        return Path(arguments.output).expanduser()
    where, local = locate(arguments.model)
    if not local or is_packaged_name(arguments.model):
        whose = "an installed model" if local else "a model of the Hub"
        raise ValueError(f"--output is missing: {whose} has no folder to write the report to")
    return Path(where) / name


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table on standard output; never wrapped or cut when it goes to a file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(Text(shown(column, 500)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell, 500)) for cell in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


def number_of(hint: Any) -> Callable[[str], Any]:
    """argparse type: a number of a type and range; see `_values`."""

    def convert(text: str) -> Any:
        try:
            return fitted(number_in(text), hint)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown_value(text)} is not {allowed(hint)}") from None

    return convert


positive_int = number_of(Count)
batch_size = number_of(BatchSize)
seed = number_of(Seed)


def layer_numbers(text: str) -> tuple[int, ...]:
    """argparse type: layer numbers with commas."""
    try:
        return tuple(positive_int(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{shown_value(text)} is not a list of layer numbers from 1, such as 1,6,12"
        ) from None


def image_size(text: str) -> int | tuple[int, int]:
    """argparse type: `224`, or `224x160` for height and width."""
    numbers = [number_of(Pixels)(part) for part in text.split("x")]
    if len(numbers) > 2:
        raise argparse.ArgumentTypeError(f"'{text}' is neither one number nor height x width, like 224x160")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])

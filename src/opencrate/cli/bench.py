"""How fast is it here? Ours, the published form and other models, timed in turns in one run.

  opencrate bench image                              CRATE-B/16, its published form, ViT-B/16; forward and step
  opencrate bench image --size tiny --batch 1 --dtypes bfloat16 --memory
  opencrate bench image hidden_size=128 num_hidden_layers=6 image_size=32 patch_size=4 --batch 128
  opencrate bench mae                                against ViTMAE
  opencrate bench text                               language models, against GPT-2
  opencrate bench decode                             tokens per second, also at equal parameters, one way or the other
  opencrate bench recipe cifar10 data.path=DATA      a training step of a recipe: loading, passes, optimizer
  opencrate bench curve --tokens 197 577 1025        time and memory over length; --depth 12 24 36: over depth
  opencrate bench compare REV_A REV_B image          two revisions of this project's source, A B A B
  opencrate bench compare REV_A REV_B recipe cifar10 data.path=DATA

Every form is called once to warm up; then all are called in turns. Printed are medians, quartiles, and how many times
as long as ours each takes, pair by pair. The published form has the same parameters and is checked to compute the same.
"% of GEMM" is the share of the rate of one large matrix product, measured in the same turns, that the products of the
maths make up. Memory is the peak of a call above the weights, each in a process of its own. It runs on the CUDA device
if there is one.
"""

from __future__ import annotations

import argparse
from typing import Any

from .common import Parser, positive_int, prepare_libraries, print_result, print_table, say

HELP = "how fast the models are here, beside others, in one run"
_TASKS = {
    "image": "a classifier of images, against its published form and ViT",
    "mae": "a masked autoencoder, against its published form and ViTMAE",
    "text": "a language model, against its published form and GPT-2",
    "decode": "generation, against GPT-2, and at GPT-2's number of parameters",
}
_LENGTHS = {"text": ("block",), "decode": ("prompt", "new")}


def add_arguments(parser: Parser) -> None:
    """The subcommands of `opencrate bench`, each with its options."""
    commands = parser.add_commands("bench_command")
    for task, words in _TASKS.items():
        _add_task(_command(commands, task, words), task)
    recipe = _add_recipe(commands)
    recipe.add_argument("--steps", type=positive_int, default=40, metavar="N", help="measured (default: 40)")
    curve = _command(commands, "curve", "time and memory over length or depth, against ViT; with a figure")
    curve.add_argument("--tokens", type=positive_int, nargs="+", default=[], metavar="N", help="lengths: 197 577 1025")
    curve.add_argument("--depth", type=positive_int, nargs="+", default=[], metavar="L", help="layers: 12 24 36")
    curve.add_argument("--no-memory", action="store_true", help="leave the memory out, which takes a process each")
    curve.add_argument("--output", metavar="DIR", default="bench-curve", help="folder (default: bench-curve)")
    _add_model(curve, "image", repeats=3)
    _add_run(curve, out=False)
    compare = _command(commands, "compare", "two revisions of this project's source, in turns")
    compare.add_argument("first", metavar="REV_A", help="commit, branch or tag; or a folder with the source")
    compare.add_argument("second", metavar="REV_B", help="another one")
    tasks = compare.add_commands("task")
    for task, words in _TASKS.items():
        _add_task(_command(tasks, task, words), task, comparing=True)
    recipe = _add_recipe(tasks)
    recipe.add_argument("--repeats", type=positive_int, default=20, metavar="N", help="steps of each (default: 20)")


def _command(commands: Any, name: str, words: str) -> Parser:
    parser = commands.add_parser(name, help=words, description=words)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_recipe(commands: Any) -> Parser:
    parser = _command(commands, "recipe", "a training step of a recipe, as it is trained")
    parser.usage = f"{parser.prog} RECIPE [key=value ...] [options]"
    parser.takes_overrides = True
    parser.add_argument("recipe", metavar="RECIPE", help="shipped recipe, YAML file or run directory")
    _add_run(parser)
    return parser


def _add_task(parser: Parser, task: str, comparing: bool = False) -> None:
    from ..bench.settings import COMPILE_MODES

    parser.takes_overrides = True
    parser.epilog = "Bare key=value words before the options change fields of the configuration: hidden_size=128."
    _add_model(parser, task, repeats=9 if comparing else 5, against=not comparing)
    for name in _LENGTHS.get(task, ()):
        parser.add_argument(f"--{name}", type=positive_int, metavar="N", help="tokens (default: 256)")
    if task != "decode":
        parser.add_argument(
            "--compile", nargs="+", default=[], metavar="MODE", help=f"also compiled: {', '.join(COMPILE_MODES)}"
        )
    if not comparing:
        parser.add_argument("--memory", action="store_true", help="peak memory, each in a process of its own")
    if task in ("image", "mae"):
        parser.add_argument("--image-size", type=positive_int, metavar="N", help="pixels of a side (default: 224)")
    _add_run(parser)


def _add_model(parser: Parser, task: str, repeats: int, against: bool = True) -> None:
    from ..bench.settings import BATCHES, DTYPES, SIZES, TASKS

    add, known = parser.add_argument, TASKS[task]
    add("--size", metavar="SIZE", help=f"named size (default: {SIZES[task]})")
    batch = BATCHES[task] if parser.prog.split()[-1] == task else 1
    add("--batch", type=positive_int, metavar="N", help=f"at once (default: {batch})")
    add("--dtypes", nargs="+", metavar="TYPE", help=f"{', '.join(DTYPES)} (default: those the processor is made for)")
    add("--modes", nargs="+", metavar="MODE", help=f"{', '.join(known['modes'])} (default: the first two)")
    if against:
        words = f"{', '.join(known['against'])}, or none of them (default: the first two)"
        add("--against", nargs="*", metavar="FORM", help=words)
    add("--repeats", type=positive_int, default=repeats, metavar="N", help=f"timed calls (default: {repeats})")


def _add_run(parser: Parser, out: bool = True) -> None:
    add = parser.add_argument
    add("--threads", type=positive_int, metavar="N", help="threads (default: torch's own choice)")
    add("--smoke", action="store_true", help="tiny sizes: does it run?")
    add("--overwrite", action="store_true", help="replace earlier results")
    if out:
        add("--out", metavar="FILE.json", help="all raw times, and the environment")


def run(arguments: argparse.Namespace) -> int:
    """Time, print, write."""
    from .._outputs import check_results
    from ..reports.bench import CURVE_FILES, check_file, describe, table, write_curve, write_result

    command, out = arguments.bench_command, getattr(arguments, "out", None)
    if command == "curve":
        check_results(arguments.output, CURVE_FILES, "curve.json", overwrite=arguments.overwrite)
    elif out:
        check_file(out, arguments.overwrite)
    prepare_libraries(arguments.debug)
    found = {"recipe": _recipe, "curve": _curve, "compare": _compare}.get(command, _task)(arguments)
    if arguments.format == "text":  # before anything is written: it took minutes to measure
        say("\n".join(describe(found)))
        print_table(*table(found))
    results = None
    if command == "curve":
        write_curve(found, arguments.output)
        results = arguments.output
    elif out:
        results = str(write_result(found, out, arguments.overwrite))
    document = {**found.as_json(), "results": results}
    print_result(arguments, document, lambda: results and say(f"results: {results}"))
    return 0


def _options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names that were given."""
    found = {name: getattr(arguments, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _task_options(arguments: argparse.Namespace, task: str) -> dict[str, Any]:
    from ..recipe.strict_yaml import parse_value

    config = {}
    for word in arguments.overrides:
        name, _, value = word.partition("=")
        config[name] = parse_value(value, word)
    if getattr(arguments, "image_size", None):
        config["image_size"] = arguments.image_size
    names = ("batch", "dtypes", "modes", "against", "memory", "repeats", "threads", "smoke", *_LENGTHS.get(task, ()))
    given = {"size": arguments.size, "config": config, "compiled": getattr(arguments, "compile", ())}
    return {**given, **_options(arguments, *names)}


def _task(arguments: argparse.Namespace) -> Any:
    from ..bench.run import bench

    return bench(arguments.bench_command, **_task_options(arguments, arguments.bench_command))


def _compare(arguments: argparse.Namespace) -> Any:
    from ..bench.revisions import compare, compare_recipe

    task = arguments.task
    if task == "recipe":
        given = _options(arguments, "repeats", "threads", "smoke")
        return compare_recipe(arguments.first, arguments.second, arguments.recipe, arguments.overrides, **given)
    return compare(arguments.first, arguments.second, task, **_task_options(arguments, task))


def _curve(arguments: argparse.Namespace) -> Any:
    from ..bench.curves import curve

    names = ("tokens", "depth", "size", "batch", "dtypes", "modes", "against", "repeats", "threads", "smoke")
    return curve(memory=not arguments.no_memory, **_options(arguments, *names))


def _recipe(arguments: argparse.Namespace) -> Any:
    from ..bench.profile import recipe

    return recipe(
        arguments.recipe, arguments.overrides, steps=arguments.steps, threads=arguments.threads, smoke=arguments.smoke
    )

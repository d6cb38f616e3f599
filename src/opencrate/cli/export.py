"""Write a model as a file that runs without this package, and check it against the eager model.

  opencrate export runs/digits-seed0 --to onnx --output digits-onnx
  opencrate export runs/digits-seed0 --to int8 --output digits-int8 --format json
  opencrate export crate-demo --to onnx --size 224 --check photos/ --output demo-onnx
  opencrate predict digits-onnx holiday/ --backend onnx

--to torch writes a program of torch.export (model.pt2), onnx a graph of ONNX (model.onnx), int8 the same with 8-bit
linear maps, the subspaces U and the dictionary D among them, and openvino a model of OpenVINO (model.xml). The graph
takes any batch, any image size that is a multiple of the patch, and any length of text; --size makes it for one image
size, for models that cannot follow it. A causal language model is exported without its cache.

The folder also holds config.json, the image processor or tokenizer, and export.json: the largest difference of outputs,
equal decisions and accuracy against the eager model, and the speed of both on the CPU. By default that is measured on
what the run held out; of a model that is no run, on two photographs or on the documentation of Python. A difference
beyond --tolerance is an error, and nothing is written.
"""

from __future__ import annotations

import argparse
from typing import Annotated, Any

from .._values import Within
from .common import (
    Parser,
    batch_size,
    image_size,
    number_of,
    positive_int,
    prepare_libraries,
    print_result,
    print_table,
    say,
)

HELP = "write a model as ONNX, torch.export, 8 bits or OpenVINO, checked"
TOLERANCE = Annotated[float, Within(0, 1)]


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate export`."""
    from ..export.targets import TARGETS

    add = parser.add_argument
    add("model", metavar="MODEL", help="run directory, saved folder, or hf://owner/name")
    add("--to", required=True, choices=tuple(TARGETS), help="; ".join(f"{k}: {v.words}" for k, v in TARGETS.items()))
    add("--output", required=True, metavar="FOLDER", help="folder to write")
    add("--overwrite", action="store_true", help="replace an earlier export")
    add("--size", type=image_size, metavar="PIXELS", help="for one image size only: 224, or height and width: 224x160")
    add(
        "--check",
        metavar="DATA",
        help="images, as a recipe's data.path, or a text to check on (default: the run's own)",
    )
    add("--skip-bad", action="store_true", help="leave out unreadable images, named and counted")
    add("--num-images", type=positive_int, default=1000, metavar="N", help="images or texts (default: 1000)")
    add("--batch-size", type=batch_size, default=32, metavar="N", help="inputs at a time (default: 32)")
    add("--repeats", type=positive_int, default=20, metavar="N", help="timed calls of each (default: 20)")
    words = ", ".join(f"{name} {target.tolerance:g}" for name, target in TARGETS.items())
    add("--tolerance", type=number_of(TOLERANCE), metavar="R", help=f"share of the largest output (default: {words})")


def run(arguments: argparse.Namespace) -> int:
    """Export, check, print."""
    from ..export.targets import target_named

    target_named(arguments.to)
    prepare_libraries(arguments.debug)
    from ..export.run import export_model

    names = ("size", "check", "batch_size", "repeats", "tolerance", "skip_bad", "overwrite")
    options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    found = export_model(arguments.model, arguments.output, arguments.to, num_inputs=arguments.num_images, **options)
    print_result(arguments, {"output": arguments.output, **found.to_dict()}, lambda: _print(arguments, found))
    return 0


def _print(arguments: argparse.Namespace, found: Any) -> None:
    from ..reports.export import rows, speed_columns, speed_rows

    print_table(("", arguments.model), rows(found))
    print_table(speed_columns(), speed_rows(found.check.speed))
    say(f"wrote {arguments.output}")

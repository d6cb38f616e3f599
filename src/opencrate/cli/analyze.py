"""Open the white box of a trained CRATE: coding rates, sparsity and attention, layer by layer.

  opencrate analyze runs/digits-seed0
  opencrate analyze runs/photos --data more-photos --output analysis --released-tool

Writes report.html (self-contained), layers.csv, layers.json and figures/, by default into RUN/analysis. The trained
model stands against the same model at initialisation, rebuilt exactly from the run's seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Parser, add_model_and_images, add_split, positive_int, prepare_libraries

HELP = "measure a model layer by layer and write a report"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate analyze`."""
    add_model_and_images(parser)
    add_split(parser)
    parser.add_argument("--beside", metavar="RUN", nargs="+", default=[], help="models to compare with")
    parser.add_argument("--output", metavar="DIR", help="folder of the report (default: RUN/analysis)")
    parser.add_argument(
        "--num-images", type=positive_int, default=256, metavar="N", help="images for the layer measures"
    )
    parser.add_argument("--eps", type=float, default=0.5, help="epsilon of the coding rates (default: 0.5)")
    parser.add_argument(
        "--released-tool", action="store_true", help="add what the paper's published measuring code prints"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the report, say where it is."""
    prepare_libraries(arguments.debug)
    from ..training.report import report_runs
    from ..training.saved import open_saved

    saved = [open_saved(path) for path in (arguments.model, *arguments.beside)]
    output = Path(arguments.output) if arguments.output else saved[0].path / "analysis"
    evaluations = report_runs(
        saved,
        output / "report.html",
        command=arguments.typed,
        data=arguments.data,
        split=arguments.split,
        num_images=arguments.num_images,
        eps=arguments.eps,
        released_tool=arguments.released_tool,
        skip_bad=arguments.skip_bad,
    )
    for one, evaluation in zip(saved, evaluations):
        print(f"{one.name}: accuracy {100 * evaluation.top1:.2f} % on {evaluation.num_images:,} images")
    print(f"report: {output / 'report.html'}")
    return 0

"""How good the masks of vision models are, on images whose true masks are known, beside floors that need no model.

  opencrate evaluate-segmentation runs/photos --data coco COCO_FOLDER
  opencrate evaluate-segmentation runs/crate runs/vit --data voc VOCdevkit --limit 100
  opencrate evaluate-segmentation runs/photos --data davis davis.parquet --noise 10,25,50,75
  opencrate evaluate-segmentation runs/photos --data folder my-masks --square --refine none

Measures, all with 95 % intervals by bootstrap over images (over sequences for DAVIS): mIoU of the attention heads'
masks, CorLoc, J, and the average precision of MaskCut's boxes and masks. Beside them stand the floors: the whole image,
a centred ellipse, smooth random maps with as many heads, and the untrained model. Of several models the differences are
taken in pairs. --data takes COCO (folder, zip, or instances*.json), DAVIS (folder or parquet), VOC, or a folder with
images/ and masks/. Writes segmentation_scores.html, .csv, _each.csv (the numbers of every image or sequence) and .json,
and figures/, by default into MODEL/segmentation-DATA.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from .._outputs import check_results
from .._values import Amount, Share
from .common import Parser, number_of, output_folder, positive_int, prepare_libraries, print_result, print_table, say

HELP = "how good masks are, on images with true masks"
_VIEWS = ("layer", "features", "size", "square", "stride")


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate evaluate-segmentation`."""
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="+", help="run directories, saved folders, or hf://owner/name")
    add(
        "--data", nargs=2, metavar=("LAYOUT", "PATH"), required=True, help="coco, davis, voc or folder, and where it is"
    )
    add("--split", default="val", metavar="NAME", help="part of the data set (default: val)")
    add("--limit", type=positive_int, metavar="N", help="at most N images (default: all)")
    parser.add_masks()
    add("--tau", type=number_of(Share), default=0.15, metavar="T", help="cosine of like patches (default: 0.15)")
    add(
        "--noise",
        type=_sigmas,
        default=(),
        metavar="S,S,...",
        help="also with noise of these sigmas, such as 10,25,50,75",
    )
    add("--untrained-seeds", type=positive_int, default=1, metavar="N", help="untrained models averaged (default: 1)")
    add("--output", metavar="DIR", help="folder of the results (default: MODEL/segmentation-LAYOUT)")
    add("--overwrite", action="store_true", help="replace finished results in that folder")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, write the page, print."""
    from ..data.segmentation.load import load_masks
    from ..store.kinds import require_kind

    layout, path = arguments.data
    data = load_masks(layout, path, split=arguments.split, limit=arguments.limit)
    output = output_folder(
        argparse.Namespace(output=arguments.output, model=arguments.models[0]), f"segmentation-{layout}"
    )
    for model in arguments.models:
        require_kind(model, ("classifier", "features", "autoencoder", "other"))
    prepare_libraries(arguments.debug)
    from ..analysis.masks.evaluate import ViewOptions, evaluate_segmentation
    from ..analysis.segmentation.scores import ScoreOptions
    from ..evaluation.language import progress
    from ..reports.html import write
    from ..reports.segmentation_scores import FILES, page_of
    from ..store.saved import open_saved

    check_results(output, FILES, FILES[0], [*arguments.models, path], arguments.models[0], arguments.overwrite)
    found = evaluate_segmentation(
        [open_saved(model) for model in arguments.models],
        data,
        views=ViewOptions(**{name: getattr(arguments, name) for name in _VIEWS}),
        masks=ScoreOptions(num_masks=arguments.num_masks, tau=arguments.tau, refine=arguments.refine),
        noise=arguments.noise,
        untrained_seeds=arguments.untrained_seeds,
        progress=partial(progress, what="images"),
    )
    record = [("command", arguments.typed), ("models", ", ".join(arguments.models))]
    page = write(page_of(found, record), output, overwrite=True)
    print_result(arguments, {**found.to_dict(), "page": page}, lambda: _print(found, page))
    return 0


def _print(found: Any, page: Path) -> None:
    from ..reports.segmentation_scores import describe, floor_table, model_table, score_tables

    for table in (*score_tables(found), model_table(found), floor_table(found)):
        if table is not None:
            columns = [str(name) for name in table.frame.columns]
            rows = [["–" if cell is None else str(cell) for cell in row] for row in table.frame.itertuples(index=False)]
            print_table([table.title, *columns[1:]], rows)
    for sentence in describe(found):
        say(sentence)
    say(f"page: {page}")


def _sigmas(text: str) -> tuple[float, ...]:
    """argparse type: numbers of at least 0 with commas."""
    return tuple(number_of(Amount)(part) for part in text.split(","))

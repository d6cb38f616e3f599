"""Find objects in photographs with any vision model, without labels: masks from its tokens or its attention.

  opencrate segment runs/photos holiday/
  opencrate segment runs/photos cat.jpg --method attention --maps --size 320
  opencrate segment vit-folder cat.jpg --method tokencut --stride 8
  opencrate segment runs/photos holiday/ --heads --layer 5

MODEL is a run directory or any saved folder of a CRATE or of transformers' vision models, or hf://owner/name, which is
downloaded. Writes overlays/ (PNG), masks/ (index masks, PNG), masks.json (COCO results with the images) and a contact
sheet, segmentation.html; with --maps also maps/ (one .npy for each picture, heads by rows by columns). --heads draws
where every head looks, the same head across all pictures, as heads.png and segmentation.html, and makes no masks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .._outputs import check_results, claim
from .._values import Amount, BatchSize, Share
from .common import Parser, named_files, number_of, positive_int, prepare_libraries, print_result, report_skipped, say

HELP = "find objects in photographs by a model's tokens or attention"
_OPTIONS = ("method", "layer", "features", "size", "square", "stride", "refine", "num_masks", "tau", "rule", "head")
_OPTIONS += ("threshold", "published")
_ABOUT = {
    "maskcut": "MaskCut: the patches' graph is cut in two, and again without what was found; the score is 1 − λ₂.",
    "tokencut": "TokenCut: one object from one cut of the patches' graph; the score is 1 − λ₂.",
    "attention": "Attention: of every head, the patches that are looked at most. Coloured is the mean of all heads.",
    "pca": "PCA: the patches along the first principal component.",
}


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate segment`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="run directory, saved folder, or hf://owner/name")
    parser.add_images()
    add("--method", choices=tuple(_ABOUT), default="maskcut", help="default: maskcut")
    parser.add_masks()
    add("--tau", type=number_of(Share), metavar="T", help="cosine of like patches (maskcut 0.15, tokencut 0.2)")
    add("--rule", default="mass:0.6", metavar="RULE", help="attention: mass:SHARE or entries:SHARE (default: mass:0.6)")
    add("--head", type=_head, metavar="H", help="attention: one head from 1, or mean (default: all)")
    add("--threshold", type=number_of(Amount), metavar="T", help="pca: on the first component (default: 0.5)")
    add("--published", action="store_true", help="maskcut, pca: as their published code differs from the paper")
    add("--heads", action="store_true", help="draw every head's attention across the pictures, make no masks")
    add("--maps", action="store_true", help="write every head's attention too")
    add("--rows", type=positive_int, default=48, metavar="N", help="pictures on the page (default: 48)")
    add("--output", metavar="DIR", help="folder of the results (default: segmentations/NAME)")
    add("--overwrite", action="store_true", help="replace finished results in that folder")
    add("--batch-size", type=number_of(BatchSize), default=8, metavar="N", help="pictures of one size (default: 8)")


def run(arguments: argparse.Namespace) -> int:
    """Segment, write, say what was found."""
    from ..store.kinds import require_kind

    files = named_files(arguments.inputs, arguments.skip_bad)
    require_kind(arguments.model, ("classifier", "features", "autoencoder", "other"))
    prepare_libraries(arguments.debug)
    from ..analysis.masks.files import segment_files
    from ..analysis.masks.options import MaskOptions
    from ..analysis.masks.segment import segmenter_of
    from ..evaluation.language import progress
    from ..reports.segmentation import FILES, PAGE, listed_files, remove_former
    from ..store.saved import name_of, open_saved

    options = MaskOptions(**{name: getattr(arguments, name) for name in _OPTIONS})
    output = Path(arguments.output or f"segmentations/{name_of(arguments.model)}").expanduser()
    read = [arguments.model, *arguments.inputs]
    check_results(output, FILES, PAGE, read, arguments.model, arguments.overwrite)
    saved = open_saved(arguments.model)
    segmenter = segmenter_of(saved, options)
    skipped: list[str] = []
    wanted = {"maps": arguments.maps or arguments.heads, "masks": not arguments.heads}
    found = segment_files(
        segmenter,
        files[: arguments.rows] if arguments.heads else files,
        batch_size=arguments.batch_size,
        skipped=skipped if arguments.skip_bad else None,
        **wanted,
    )
    write = _write_heads if arguments.heads else _write_masks
    former = listed_files(output)
    sentence, facts, written = write(progress(found, "pictures", len(files)), output, saved, arguments)
    if sentence:
        remove_former(output, former, written)
    report_skipped(skipped, len(files))
    if not sentence:
        raise ValueError(f"none of the {len(files)} images can be segmented")
    print_result(arguments, {"page": output / PAGE, **facts}, lambda: say(f"{sentence}\npage: {output / PAGE}"))
    return 0


def _write_masks(
    found: Iterable[Any], output: Path, saved: Any, arguments: argparse.Namespace
) -> tuple[str, dict[str, Any], set[str]]:
    """Every picture's files, then the page.

    Returns:
        What was found in a sentence (empty: no picture), the same as facts, and the files besides the page.
    """
    from ..reports.html import write
    from ..reports.segmentation import Sheet, page_of
    from ..stats.words import plural

    sheet = Sheet(output, arguments.rows, arguments.maps)
    for one in found:
        if not sheet.images:
            claim(output)
        sheet.add(one)
    if not sheet.images:
        return "", {}, set()
    title = f"Masks by {saved.title}"
    write(page_of(sheet, title, _record(saved, arguments), _ABOUT[arguments.method]), output, overwrite=True)
    facts = {"masks_json": output / "masks.json", "masks": len(sheet.annotations), "pictures": len(sheet.images)}
    return f"{plural(len(sheet.annotations), 'mask')} in {plural(len(sheet.images), 'picture')}", facts, sheet.written


def _write_heads(
    found: Iterable[Any], output: Path, saved: Any, arguments: argparse.Namespace
) -> tuple[str, dict[str, Any], set[str]]:
    """The grid of heads as PNG and page; what was found, as `_write_masks`."""
    from ..reports.html import write, write_files
    from ..reports.segmentation import heads_page, heads_png
    from ..stats.words import plural

    rows = list(found)
    if not rows:
        return "", {}, set()
    first = rows[0].found
    png, size = heads_png([(one.file.name, one.picture, one.found.maps) for one in rows])
    write_files(claim(output), {"heads.png": png})
    page = heads_page(png, size, f"Heads of {saved.title}", _record(saved, arguments), first.layer, first.looked_at_by)
    write(page, output, overwrite=True)
    facts = {"heads_png": output / "heads.png", "heads": len(first.maps), "pictures": len(rows)}
    sentence = f"{plural(len(first.maps), 'head')} across {plural(len(rows), 'picture')}: {output / 'heads.png'}"
    return sentence, facts, {"heads.png"}


def _record(saved: Any, arguments: argparse.Namespace) -> list[tuple[str, str]]:
    return [("command", arguments.typed), ("model", str(saved.source)), ("method", arguments.method)]


def _head(text: str) -> int | str:
    """argparse type: a head's number from 1, or mean."""
    return text if text == "mean" else positive_int(text)

"""Mask image files, let an autoencoder fill them in, and measure how close it comes.

  opencrate reconstruct runs/cifar10-mae-seed0 photos/ --output grids
  opencrate reconstruct vit-mae-folder cat.jpg dog.jpg --mask-ratio 0.5 --seed 3

MODEL is a run directory or any saved folder of CrateMAEForPreTraining or transformers' ViTMAEForPreTraining, or
hf://owner/name, which is downloaded. Writes reconstruction.png (original, masked, reconstruction, visible patches
pasted in), reconstruction.csv and reconstruction.json with PSNR, SSIM and, on the masked patches, the squared error
beside that of two baselines: the visible patches' mean colour, and a copy of the nearest visible patch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._outputs import check_results
from .._values import BatchSize, Share
from .common import (
    Parser,
    named_files,
    number_of,
    positive_int,
    prepare_libraries,
    print_result,
    print_table,
    report_skipped,
    say,
    seed,
)

HELP = "mask images and fill them in with an autoencoder"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate reconstruct`."""
    parser.add_argument("model", metavar="MODEL", help="run directory, saved folder, opencrate/name or hf://owner/name")
    parser.add_images()
    parser.add_argument("--mask-ratio", type=number_of(Share), metavar="R", help="in [0, 1) (default: the model's own)")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of the masks (default: 0)")
    parser.add_argument("--output", metavar="DIR", help="folder of the results (default: reconstructions/NAME)")
    parser.add_argument("--overwrite", action="store_true", help="replace finished results in that folder")
    parser.add_argument("--rows", type=positive_int, default=16, metavar="N", help="images in the picture")
    parser.add_argument("--batch-size", type=number_of(BatchSize), default=64, metavar="N")


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct, write, print the means."""
    from ..store.kinds import require_kind

    files = named_files(arguments.inputs, arguments.skip_bad)
    require_kind(arguments.model, ("autoencoder",))
    prepare_libraries(arguments.debug)
    from ..evaluation.reconstruction import QUALITY, reconstruct_files
    from ..reports.reconstruction import ERRORS, MOMENTS_NOTE, NAME, images_of, mean_numbers, write_reconstruction
    from ..store.saved import name_of, open_saved

    name = name_of(arguments.model)
    output = Path(arguments.output or f"reconstructions/{name}")
    names, read = (f"{NAME}.csv", f"{NAME}.json", f"{NAME}.png"), [arguments.model, *arguments.inputs]
    check_results(output, names, f"{NAME}.json", read, arguments.model, arguments.overwrite)
    saved = open_saved(arguments.model, ("autoencoder",))
    skipped: list[str] = []
    options = {"seed": arguments.seed, "batch_size": arguments.batch_size}
    options["skipped"] = skipped if arguments.skip_bad else None
    images: list[Any] = []
    for read, found in reconstruct_files(saved, files, arguments.mask_ratio, **options):
        images += images_of(found, [str(file) for file in read], arguments.rows - len(images))
    report_skipped(skipped, len(files))
    if not images:
        raise ValueError(f"none of the {len(files)} images can be read")
    config = saved.model.config
    ratio = config.mask_ratio if arguments.mask_ratio is None else arguments.mask_ratio
    facts = {
        "command": arguments.typed,
        "model": str(arguments.model),
        "model_type": config.model_type,
        "mask_ratio": ratio,
        "seed": arguments.seed,
        "skipped": skipped,
        "note": MOMENTS_NOTE if config.norm_pix_loss else "",
    }
    write_reconstruction(output, images, facts, f"{name}, mask ratio {ratio:g}, seed {arguments.seed}")
    words, means = QUALITY | ERRORS, mean_numbers(images)
    document = {"output": output, **facts, "num_images": len(images), "mean": means}
    title = f"mean over {len(images)} images, mask ratio {ratio:g}, seed {arguments.seed}"
    lines = [*([f"Note: {MOMENTS_NOTE}."] if config.norm_pix_loss else []), f"results: {output}"]
    rows = [(words[key], f"{means[key]:.4g}") for key in words if key in means]
    print_result(arguments, document, lambda: (print_table((title, ""), rows), say("\n".join(lines))))
    return 0

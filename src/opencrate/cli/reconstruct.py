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

from .._outputs import check_free, check_output, check_results
from .._values import Share
from .common import (
    Parser,
    batch_size,
    number_of,
    positive_int,
    prepare_libraries,
    print_table,
    say,
    seed,
)
from .images import add_images, named_files, readable, report_skipped

HELP = "mask images and fill them in with an autoencoder"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate reconstruct`."""
    parser.add_argument("model", metavar="MODEL", help="run directory, saved folder, or hf://owner/name")
    add_images(parser)
    parser.add_argument("--mask-ratio", type=number_of(Share), metavar="R", help="in [0, 1) (default: the model's own)")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of the masks (default: 0)")
    parser.add_argument("--output", metavar="DIR", help="folder of the results (default: reconstructions/NAME)")
    parser.add_argument("--overwrite", action="store_true", help="replace finished results in that folder")
    parser.add_argument("--rows", type=positive_int, default=16, metavar="N", help="images in the picture")
    parser.add_argument("--batch-size", type=batch_size, default=64, metavar="N")


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct, write, print the means."""
    files = named_files(arguments.inputs, arguments.skip_bad)
    prepare_libraries(arguments.debug)
    from ..data.images.tensors import ImageTransform
    from ..evaluation.reconstruction import QUALITY, load_autoencoder
    from ..reports.reconstruction import ERRORS, MOMENTS_NOTE, NAME, mean_numbers, write_reconstruction
    from ..store.kinds import require_kind
    from ..store.load import name_of
    from ..store.unlabelled import load_processor

    name = name_of(arguments.model)
    output = Path(arguments.output or f"reconstructions/{name}")
    check_output(output, [arguments.model, *arguments.inputs], within=arguments.model)
    check_results(output, (f"{NAME}.csv", f"{NAME}.json", f"{NAME}.png"), f"{NAME}.json")
    check_free(output, (f"{NAME}.json",), arguments.overwrite)
    require_kind(arguments.model, ["autoencoder"])
    model = load_autoencoder(arguments.model)
    transform = ImageTransform.for_model(model.config, load_processor(arguments.model))
    images, skipped = _reconstruct_all(model, transform, files, arguments)
    report_skipped(skipped, len(files))
    if not images:
        raise ValueError(f"none of the {len(files)} images can be read")
    ratio = model.config.mask_ratio if arguments.mask_ratio is None else arguments.mask_ratio
    facts = {
        "command": arguments.typed,
        "model": str(arguments.model),
        "model_type": model.config.model_type,
        "mask_ratio": ratio,
        "seed": arguments.seed,
        "skipped": skipped,
        "note": MOMENTS_NOTE if model.config.norm_pix_loss else "",
    }
    write_reconstruction(output, images, facts, f"{name}, mask ratio {ratio:g}, seed {arguments.seed}")
    words = QUALITY | ERRORS
    means = mean_numbers(images)
    rows = [(words[key], f"{means[key]:.4g}") for key in words if key in means]
    print_table((f"mean over {len(images)} images, mask ratio {ratio:g}, seed {arguments.seed}", ""), rows)
    if model.config.norm_pix_loss:
        say(f"Note: {MOMENTS_NOTE}.")
    say(f"results: {output}")
    return 0


def _reconstruct_all(
    model: Any, transform: Any, files: list[Path], arguments: argparse.Namespace
) -> tuple[list[Any], list[str]]:
    """Every readable image with its numbers, and the reasons for the others."""
    import torch

    from ..evaluation.reconstruction import grid_of, patch_noise, reconstruct
    from ..reports.reconstruction import images_of

    images: list[Any] = []
    skipped: list[str] = []
    noise = None
    for start in range(0, len(files), arguments.batch_size):
        batch = files[start : start + arguments.batch_size]
        read = readable(transform, batch, skipped if arguments.skip_bad else None)
        if not read:
            continue
        pixels = torch.stack([values for _, values in read])
        if noise is None:
            rows, columns = grid_of(model, pixels)
            noise = patch_noise(len(files), rows * columns, arguments.seed)
        found = reconstruct(
            model,
            pixels,
            noise[len(images) : len(images) + len(read)],
            transform.processor.image_mean,
            transform.processor.image_std,
            arguments.mask_ratio,
        )
        images += images_of(found, [str(file) for file, _ in read], arguments.rows - len(images))
    return images, skipped

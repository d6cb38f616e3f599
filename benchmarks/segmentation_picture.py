"""MaskCut's masks of some photographs by some models, side by side.

    python benchmarks/segmentation_picture.py --models "CRATE, labels=runs/crate" "ViT, labels=runs/vit" \\
        --images cat.png flower.jpg --size 480 --output masks.png
"""

import argparse
from pathlib import Path

import torch

from opencrate import open_saved
from opencrate.analysis.masks.options import MaskOptions
from opencrate.analysis.masks.segment import segmenter_of
from opencrate.image_processing_crate import read_picture
from opencrate.reports.html import picture
from opencrate.reports.segmentation import overlay
from opencrate.reports.segmentation_figures import plot_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=RUN")
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names, runs = zip(*(text.rsplit("=", 1) for text in options.models))
    segmenters = [segmenter_of(open_saved(run), MaskOptions(size=options.size)) for run in runs]
    rows = []
    for file in options.images:
        image = read_picture(file).convert("RGB")
        found = [segmenter([image])[0] for segmenter in segmenters]
        rows.append([image, *(overlay(image, [mask.pixels for mask in one.masks]) for one in found)])
        for name, one in zip(names, found):
            print(f"{Path(file).name}, {name}, {one.grid}: {[round(m.score or 0, 2) for m in one.masks]}", flush=True)
    options.output.write_bytes(picture(plot_rows(rows, ["photograph", *names])))


if __name__ == "__main__":
    main()

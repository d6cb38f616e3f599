"""What masks reach that look at no image, on small parts of COCO and DAVIS.

    python benchmarks/segmentation_floors.py --coco coco-train2017-70.zip --davis davis2016-val-100.parquet

COCO: a zip with `annotations/instances.json` whose masks are run lengths; one mask for each image, all categories as
one. DAVIS: a parquet table with columns `mask` and `sequence`; the sequence is the unit of the intervals.
"""

import argparse
import io
import json
import zipfile

import numpy as np
import pandas as pd
from PIL import Image

from opencrate.analysis.segmentation.attention_masks import attention_masks, resized
from opencrate.analysis.segmentation.average_precision import (
    average_precision_interval,
    crowd_box_ious,
    mask_ious,
    match_image,
)
from opencrate.analysis.segmentation.boxes import mask_box
from opencrate.analysis.segmentation.coco_eval import official_average_precision
from opencrate.analysis.segmentation.coco_results import by_image, coco_results, decode
from opencrate.analysis.segmentation.floors import SHARES, centred_ellipse, smooth_random_maps, whole_image
from opencrate.analysis.segmentation.metrics import by_sequence, choose_on_others, corloc, iou
from opencrate.stats import bootstrap_mean

HEADS = (6, 12)
GRID = (17, 30)
RULES = ("entries:0.6", "mass:0.6")


def coco_floors(path: str, official: bool) -> None:
    """Box and mask AP of the whole image and of ellipses, in percent, with 95 % intervals over images."""
    with zipfile.ZipFile(path) as archive:
        truth = json.loads(archive.read("annotations/instances.json"))
    instances = by_image(truth["annotations"])
    print(f"COCO: {len(truth['images'])} images, {len(truth['annotations'])} annotations; AP50 / AP75 / AP")
    floors = {"whole image": whole_image} | {
        f"ellipse {share:.0%}": lambda size, share=share: centred_ellipse(size, share) for share in SHARES
    }
    for name, floor in floors.items():
        matches: dict[str, list] = {"box": [], "mask": []}
        results = []
        for image in sorted(truth["images"], key=lambda one: one["id"]):
            mask = floor((image["height"], image["width"]))
            results += coco_results(image["id"], mask[None], [1.0])
            for kind, found in _of_image(mask, instances.get(image["id"], [])).items():
                matches[kind].append(found)
        for kind, found in matches.items():
            interval = average_precision_interval(found)
            parts = zip(100 * interval.mean, 100 * interval.low, 100 * interval.high)
            line = " / ".join(f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in parts)
            print(f"{name:14} {kind:4} {line}")
            if official:
                print(f"{'':14} {'':4} official {np.round(100 * official_average_precision(truth, results, kind), 2)}")


def _of_image(mask: np.ndarray, annotations: list) -> dict:
    """The matches of one mask by its box and by itself."""
    crowd = [bool(one["iscrowd"]) for one in annotations]
    boxes = np.array([one["bbox"] for one in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    truths = np.array([decode(one["segmentation"]) for one in annotations], dtype=bool).reshape(-1, *mask.shape)
    return {
        "box": match_image(crowd_box_ious(np.array([mask_box(mask)]), boxes, crowd), [1.0], crowd),
        "mask": match_image(mask_ious(mask[None], truths, crowd), [1.0], crowd),
    }


def davis_floors(path: str) -> None:
    """J of masks and of the best head of random maps, and CorLoc, with 95 % intervals over sequences."""
    frames = pd.read_parquet(path, columns=["mask", "sequence"])
    truths = [np.asarray(Image.open(io.BytesIO(one["bytes"]))) > 0 for one in frames["mask"]]
    sequences = frames["sequence"].tolist()
    print(f"DAVIS: {len(truths)} frames of {len(set(sequences))} sequences; J, and CorLoc of the same masks")

    def line(name, values, boxes=None):
        shown = [values] if boxes is None else [values, boxes]
        intervals = [bootstrap_mean(by_sequence(one, sequences)[1]) for one in shown]
        print(f"{name:34} " + "   ".join(f"{x.mean:.3f} ({x.low:.3f} to {x.high:.3f})" for x in intervals))

    size = truths[0].shape
    assert all(one.shape == size for one in truths)
    floors = {"whole image": whole_image(size)} | {
        f"ellipse {share:.0%}": centred_ellipse(size, share) for share in SHARES
    }
    each = {name: [iou(mask, truth) for truth in truths] for name, mask in floors.items()}
    for name, mask in floors.items():
        line(name, each[name], [corloc(mask_box(mask), [mask_box(truth)]) for truth in truths])
    ellipses = np.stack([each[f"ellipse {share:.0%}"] for share in SHARES], 1)
    line("ellipse chosen on other sequences", choose_on_others(ellipses, sequences)[1])
    half = centred_ellipse(size, np.pi / 16)  # its box has half of each side
    line(
        "ellipse in the half-size box",
        [iou(half, one) for one in truths],
        [corloc(mask_box(half), [mask_box(t)]) for t in truths],
    )
    for heads in HEADS:
        for rule in RULES:
            scores = []
            for seed, truth in enumerate(truths):
                masks = attention_masks(smooth_random_maps(heads, GRID, seed), rule)
                scores.append([iou(mask, truth) for mask in resized(masks, GRID, size)])
            line(f"random maps {rule}, mean of {heads}", np.mean(scores, 1))
            line(f"random maps {rule}, best of {heads}", np.max(scores, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", help="the zip")
    parser.add_argument("--davis", help="the parquet table")
    parser.add_argument("--official", action="store_true", help="beside ours the numbers of COCO's evaluator")
    options = parser.parse_args()
    if options.coco:
        coco_floors(options.coco, options.official)
    if options.davis:
        davis_floors(options.davis)


if __name__ == "__main__":
    main()

"""What masks reach that look at no image, on small parts of COCO and DAVIS.

    python benchmarks/segmentation_floors.py --coco coco-train2017-70.zip --davis davis2016-val-100.parquet

COCO and DAVIS as `opencrate evaluate-segmentation` takes them. COCO: one mask for each image, all categories as one.
DAVIS: the sequence is the unit of the intervals.
"""

import argparse

import numpy as np

from opencrate.analysis.segmentation.attention_masks import attention_masks, resized
from opencrate.analysis.segmentation.average_precision import average_precision_interval
from opencrate.analysis.segmentation.boxes import mask_box
from opencrate.analysis.segmentation.coco_eval import official_average_precision
from opencrate.analysis.segmentation.coco_results import coco_results
from opencrate.analysis.segmentation.floors import SHARES, centred_ellipse, smooth_random_maps, whole_image
from opencrate.analysis.segmentation.metrics import by_sequence, choose_on_others, corloc, iou
from opencrate.analysis.segmentation.scores import CONSTANT, score_detections
from opencrate.data.segmentation.load import load_masks
from opencrate.data.segmentation.run_lengths import encode
from opencrate.data.segmentation.truth import MaskedImages
from opencrate.stats import bootstrap_mean

HEADS = (6, 12)
GRID = (17, 30)
RULES = ("entries:0.6", "mass:0.6")


def coco_floors(path: str, official: bool) -> None:
    """Box and mask AP of the whole image and of ellipses, in percent, with 95 % intervals over images."""
    images = load_masks("coco", path)
    truth = _truth(images)
    print(f"COCO: {len(images)} images, {len(truth['annotations'])} annotations; AP50 / AP75 / AP")
    floors = {"whole image": whole_image} | {
        f"ellipse {share:.0%}": lambda size, share=share: centred_ellipse(size, share) for share in SHARES
    }
    for name, floor in floors.items():
        matches: dict[str, list] = {"box": [], "mask": []}
        results = []
        for number, image in enumerate(images, 1):
            mask = floor(image.size)
            results += coco_results(number, mask[None], [1.0])
            for (kind, ranking), found in score_detections(mask[None], [1.0], image).items():
                if ranking == CONSTANT:
                    matches[kind].append(found)
        for kind, found in matches.items():
            interval = average_precision_interval(found)
            parts = zip(100 * interval.mean, 100 * interval.low, 100 * interval.high)
            line = " / ".join(f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in parts)
            print(f"{name:14} {kind:4} {line}")
            if official:
                print(f"{'':14} {'':4} official {np.round(100 * official_average_precision(truth, results, kind), 2)}")


def _truth(images: MaskedImages) -> dict:
    """The instances as a COCO file has them, images numbered from 1."""
    annotations = [
        {
            "image_id": number,
            "category_id": 1,
            "iscrowd": int(crowd),
            "segmentation": encode(mask),
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": int(mask.sum()),
        }
        for number, image in enumerate(images, 1)
        for mask, box, crowd in zip(image.instances, image.instance_boxes.tolist(), image.crowd)
    ]
    return {
        "images": [
            {"id": number, "height": image.size[0], "width": image.size[1]} for number, image in enumerate(images, 1)
        ],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, 1)],
    }


def davis_floors(path: str) -> None:
    """J of masks and of the best head of random maps, and CorLoc, with 95 % intervals over sequences."""
    images = load_masks("davis", path)
    truths, sequences = [one.foreground for one in images], list(images.groups)
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
    parser.add_argument("--coco", help="the folder or zip")
    parser.add_argument("--davis", help="the parquet table")
    parser.add_argument("--official", action="store_true", help="beside ours the numbers of COCO's evaluator")
    options = parser.parse_args()
    if options.coco:
        coco_floors(options.coco, options.official)
    if options.davis:
        davis_floors(options.davis)


if __name__ == "__main__":
    main()

"""Made tokens, masks and instances for the tests of this folder."""

import numpy as np

from opencrate.analysis.segmentation.average_precision import crowd_box_ious, mask_ious, match_image
from opencrate.analysis.segmentation.boxes import mask_box
from opencrate.analysis.segmentation.coco_results import coco_results
from opencrate.data.segmentation.run_lengths import encode

GRID = (12, 16)


def two_objects(seed=0, noise=0.2, dim=32):
    """Features `(N, d)` of two objects on a ground, float32, and a label for each token: 0, 1, 2."""
    labels = np.zeros(GRID, dtype=int)
    labels[2:6, 2:7] = 1
    labels[7:11, 9:14] = 2
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.standard_normal((dim, 3)))[0].T
    tokens = directions[labels.ravel()] + noise / np.sqrt(dim) * random.standard_normal((labels.size, dim))
    return tokens.astype(np.float32), labels


def rectangle(random, size):
    """A random rectangle, at least one pixel."""
    rows, columns = (np.sort(random.choice(side + 1, 2, replace=False)) for side in size)
    mask = np.zeros(size, dtype=bool)
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


def detections(seed, constant_score):
    """A COCO data set of 12 small images, results on it, and our matches of masks and of boxes."""
    random, size = np.random.default_rng(seed), (24, 30)
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "info": {},
    }
    results, matches = [], {"mask": [], "box": []}
    for image in range(12):
        truth["images"].append({"id": image, "height": size[0], "width": size[1]})
        instances = [rectangle(random, size) for _ in range(random.integers(0, 5))]
        crowd = [bool(random.random() < 0.2) for _ in instances]
        boxes = [mask_box(mask) for mask in instances]
        for mask, is_crowd, (left, top, right, bottom) in zip(instances, crowd, boxes):
            truth["annotations"].append({
                "id": len(truth["annotations"]) + 1, "image_id": image, "category_id": int(random.integers(1, 3)),
                "segmentation": encode(mask), "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()), "iscrowd": int(is_crowd),
            })  # fmt: skip
        found = [np.roll(mask, random.integers(-3, 4, 2) * (random.random() < 0.7), (0, 1)) for mask in 2 * instances]
        found = np.array([*found, rectangle(random, size), rectangle(random, size)])
        scores = [1.0 if constant_score else float(np.round(random.random(), 1)) for _ in found]
        results += coco_results(image, found, scores)
        true = np.array(instances, dtype=bool).reshape(-1, *size)
        matches["mask"].append(match_image(mask_ious(found, true, crowd), scores, crowd))
        ious = crowd_box_ious(np.array([mask_box(mask) for mask in found]), np.array(boxes).reshape(-1, 4), crowd)
        matches["box"].append(match_image(ious, scores, crowd))
    return truth, results, matches

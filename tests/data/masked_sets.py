"""Small data sets with true masks, written in every layout."""

import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 32, 48


def square(left=4, top=8, right=20, bottom=24):
    """A mask with one rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def picture(seed=0):
    """An image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def save(path: Path, values):
    """An array or image as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path)


def indexed(values):
    """A picture with a palette."""
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([(7 * index) % 256 for index in range(768)])
    return image


def coco(root: Path, name="instances_val2017.json", images="val2017"):
    """Two images: a polygon, a crowd and a run length of two classes; nothing. Gives the mapping in the file."""
    run_lengths = {"size": [HEIGHT, WIDTH], "counts": [30 * HEIGHT, 10 * HEIGHT, 8 * HEIGHT]}
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, 47 * HEIGHT]}
    entries = [
        (7, [[4, 8, 20, 8, 20, 24, 4, 24]], [4, 8, 16, 16], 0),
        (90, run_lengths, [30, 0, 10, 32], 0),
        (7, crowd, [0, 0, 1, 32], 1),
    ]
    names = ("segmentation", "bbox", "iscrowd")
    content = {
        "images": [
            {"id": 9, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 90, "name": "lamp"}, {"id": 7, "name": "fish"}],
        "annotations": [
            {"id": index, "image_id": 2, "category_id": kind, **dict(zip(names, rest))}
            for index, (kind, *rest) in enumerate(entries)
        ],
    }
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / name).write_text(json.dumps(content))
    for stem, seed in (("a", 0), ("b", 1)):
        save(root / images / f"{stem}.png", picture(seed))
    return content


def davis(root: Path):
    """Two sequences of two frames; the list names files."""
    lines = []
    for place, name in enumerate(("cow", "ant")):
        for frame in range(2):
            paths = f"JPEGImages/480p/{name}/{frame:05}.jpg", f"Annotations/480p/{name}/{frame:05}.png"
            save(root / paths[0], picture(frame))
            save(root / paths[1], square(4 + 4 * place, 8, 20 + 4 * place, 24).astype(np.uint8) * 255)
            lines.append(" ".join(f"/{path}" for path in paths))
    (root / "ImageSets/480p").mkdir(parents=True)
    (root / "ImageSets/480p/val.txt").write_text("\n".join(lines))


def voc(root: Path, boxes=True):
    """One image: an object of class 15 with an unknown border, and one without."""
    save(root / "JPEGImages/x1.jpg", picture())
    labels = np.where(square(3, 7, 21, 25), 255, 0)
    labels[square()] = 15
    labels[square(30, 0, 40, 32)] = 3
    objects = labels.copy()
    objects[square()], objects[square(30, 0, 40, 32)] = 1, 2
    save(root / "SegmentationClass/x1.png", indexed(labels))
    save(root / "SegmentationObject/x1.png", indexed(objects))
    if boxes:
        box = "<bndbox><xmin>5</xmin><ymin>9</ymin><xmax>20</xmax><ymax>24</ymax></bndbox>"
        (root / "Annotations").mkdir()
        (root / "Annotations/x1.xml").write_text(f"<annotation><object><name>person</name>{box}</object></annotation>")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("x1\n")


def folder(root: Path, count=3):
    """Images with one object each, a little further to the right in every one."""
    for index in range(count):
        save(root / f"images/p{index}.png", picture(index))
        save(root / f"masks/p{index}.png", square(4 + 4 * index, 8, 20 + 4 * index, 24).astype(np.uint8) * 255)


def zipped(root: Path):
    """The folder as a zip file beside it."""
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(root).as_posix())
    return path

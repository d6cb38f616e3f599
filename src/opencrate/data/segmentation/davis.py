"""DAVIS-2016: frames of sequences with the mask of what moves, as official folders or as one parquet table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..._files import shown
from ..images.tables import is_parquet, read_parquet
from .files import DataFiles, read_image, read_values
from .truth import Array, MaskedImage, MaskedImages, boxes_of

_CLASS = {1: "foreground"}
_WHAT = (
    "DAVIS's own folders (JPEGImages, Annotations, ImageSets) or a parquet file with columns image, mask and sequence"
)


def load_davis(path: str | Path, split: str = "val") -> MaskedImages:
    """Frames in the order of the sequences' list; the sequence is the unit.

    Args:
        path: a folder or zip file with `JPEGImages/480p/SEQUENCE/*.jpg`, `Annotations/480p/SEQUENCE/*.png` and
            `ImageSets/480p/val.txt` (or `ImageSets/2016/val.txt`), or a parquet file with the columns `image`, `mask`
            and `sequence`, in its own order.
        split: the list's name; of no meaning for a parquet file.

    Raises:
        ValueError: something else, or a list, a column or a frame that is not there.
    """
    if is_parquet(Path(path)) and not Path(path).expanduser().is_dir():
        return _table(Path(path).expanduser())
    files = DataFiles(path, _WHAT)
    root, pairs = _listed(files, split)

    def read(pair: tuple[str, str]) -> MaskedImage:
        values, _ = files.values(pair[1])
        return _frame("/".join(pair[0].split("/")[-2:]), files.image(pair[0]), values)

    groups = tuple(image.split("/")[-2] for image, _ in pairs)
    return MaskedImages("davis", f"{shown(root)}, {split}", pairs, read, groups, _CLASS, one_object=True)


def _frame(name: str, picture: Image.Image, values: Array) -> MaskedImage:
    inside = values != 0
    instances = inside[None] if inside.any() else np.zeros((0, *inside.shape), dtype=bool)
    crowd = np.zeros(len(instances), dtype=bool)
    boxes = boxes_of(instances)
    return MaskedImage(name, picture, inside.astype(np.int32), instances, crowd, boxes, boxes)


def _listed(files: DataFiles, split: str) -> tuple[Path, list[tuple[str, str]]]:
    """The images and masks of a list, whose lines name either both files or a sequence."""
    lists = [f"{base}ImageSets/{kind}/{split}.txt" for base in ("", "DAVIS/") for kind in ("480p", "2016", "1080p")]
    name = next((one for one in lists if files.has(one)), None)
    if name is None:
        raise ValueError(
            f"{shown(files.root)}: no ImageSets/480p/{split}.txt; give {_WHAT}, and a `split` that it lists"
        )
    base = name.partition("ImageSets/")[0]
    pairs = []
    for line in files.lines(name):
        words = line.split()
        if len(words) > 1:
            pairs.append((base + words[0].lstrip("/"), base + words[1].lstrip("/")))
            continue
        images = files.below(f"{base}JPEGImages/480p/{words[0]}")
        if not images:
            raise ValueError(f"{files.where(name)}: names {shown(words[0])}, but JPEGImages/480p has no such folder")
        folder = f"{base}Annotations/480p/{words[0]}"
        pairs += [(image, f"{folder}/{Path(image).stem}.png") for image in images]
    for wanted in (one for pair in pairs for one in pair):
        if not files.has(wanted):
            raise ValueError(f"{files.where(wanted)}: no such file, but {shown(name)} names it; mend the folder")
    if not pairs:
        raise ValueError(f"{files.where(name)}: names no frames; give another list")
    return files.root, pairs


def _table(path: Path) -> MaskedImages:
    tables = read_parquet(path, [path])
    _, table = next(iter(tables.values()))
    missing = [name for name in ("image", "mask", "sequence") if name not in table.column_names]
    if missing:
        raise ValueError(f"{shown(path)}: no column {missing[0]}; give {_WHAT}")
    from datasets import Image as Encoded

    for name in ("image", "mask"):
        table = table.cast_column(name, Encoded(decode=False))
    sequences = tuple(str(name) for name in table["sequence"])
    frames: Any = table["frame"] if "frame" in table.column_names else range(len(table))

    def read(row: int) -> MaskedImage:
        cells, where = table[row], f"{shown(path)}, row {row}"
        values, _ = read_values(_content(cells["mask"], f"{where}, mask"), f"{where}, mask")
        picture = read_image(_content(cells["image"], where), where)
        return _frame(f"{sequences[row]}/{frames[row]}", picture, values)

    return MaskedImages("davis", shown(path), range(len(table)), read, sequences, _CLASS, one_object=True)


def _content(cell: Any, where: str) -> bytes:
    if not cell or cell.get("bytes") is None:
        raise ValueError(f"{where}: no image in the table; replace the file")
    return cell["bytes"]

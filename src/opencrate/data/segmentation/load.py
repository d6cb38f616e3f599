"""A data set with true masks by the name of its layout."""

from __future__ import annotations

from pathlib import Path

from ..._suggest import suggest
from .coco import load_coco
from .davis import load_davis
from .folder import load_folder
from .truth import MaskedImages
from .voc import load_voc

LAYOUTS = ("coco", "davis", "voc", "folder")


def load_masks(layout: str, path: str | Path, *, split: str = "val", limit: int | None = None) -> MaskedImages:
    """Images with true masks; nothing is read but their list.

    Args:
        layout: `coco`, `davis`, `voc` or `folder` (images/ and masks/).
        path: the data set; what each layout takes is said at `load_coco` and so on.
        split: the part that is read, where the data set has several.
        limit: at most as many images, the first of every sequence in turn.

    Raises:
        ValueError: another layout, or what the layout's own function refuses.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: {suggest(str(layout), LAYOUTS)}")
    if layout == "folder":
        return load_folder(path).first(limit)
    readers = {"coco": load_coco, "davis": load_davis, "voc": load_voc}
    return readers[layout](path, split).first(limit)

"""What a run was trained on, in one hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from datasets import Dataset

from .._files import read_bytes
from .images.labelled import cells_of

CONTENT_LIMIT = 2 << 30
"""Above this many bytes of image files, names and sizes are hashed instead of the content."""


def fingerprint(dataset: Dataset, content_limit: int = CONTENT_LIMIT) -> dict[str, Any]:
    """SHA-256 over the images of a split (columns `image`, undecoded, and `label`), in order, with their class names.

    Args:
        content_limit: bytes of files above which only names and sizes are read.

    Returns:
        `images` (how many), `sha256`, and `of`: "content", or "names and sizes". None depends on the folder's place.
    """
    names = dataset.features["label"].names
    cells = cells_of(dataset, range(len(dataset)))
    by_content = sum(_size(cell) for cell in cells if cell["bytes"] is None) <= content_limit
    digest = hashlib.sha256()
    for cell, label in zip(cells, dataset["label"][:]):
        if cell["bytes"] is not None:
            content = cell["bytes"]
        elif by_content:
            content = read_bytes(cell["path"], "an image") if _size(cell) else b""
        else:
            content = f"{Path(cell['path'] or '').name}\0{_size(cell)}".encode()
        digest.update(f"{names[label]}\0{len(content)}\0".encode())
        digest.update(content)
    return {"images": len(cells), "sha256": digest.hexdigest(), "of": "content" if by_content else "names and sizes"}


def _size(cell: dict[str, Any]) -> int:
    """Bytes of the cell's file; 0 where there is none, which is an error when the image is read."""
    path = Path(cell["path"] or "")
    return path.stat().st_size if path.is_file() else 0

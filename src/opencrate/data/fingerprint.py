"""What a run was trained on, in one hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from datasets import Dataset

CONTENT_LIMIT = 2 << 30
"""Above this many bytes of image files, names and sizes are hashed instead of the content."""


def fingerprint(dataset: Dataset, content_limit: int = CONTENT_LIMIT) -> dict[str, Any]:
    """SHA-256 over the images of a split, in order, with their class names.

    Args:
        dataset: a split with the columns `image` (undecoded cells) and `label`.
        content_limit: bytes of files above which only names and sizes are read.

    Returns:
        `images` (how many), `sha256`, and `of`: "content", or "names and sizes" for a large folder. Neither
        depends on where the folder lies.
    """
    names = dataset.features["label"].names
    cells = dataset["image"][:]
    size = sum(Path(cell["path"]).stat().st_size for cell in cells if cell["bytes"] is None)
    by_content = size <= content_limit
    digest = hashlib.sha256()
    for cell, label in zip(cells, dataset["label"][:]):
        content = _content(cell) if by_content or cell["bytes"] is not None else _name_and_size(cell)
        digest.update(f"{names[label]}\0{len(content)}\0".encode())
        digest.update(content)
    return {
        "images": len(cells),
        "sha256": digest.hexdigest(),
        "of": "content" if by_content else "names and sizes",
    }


def _content(cell: dict[str, Any]) -> bytes:
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _name_and_size(cell: dict[str, Any]) -> bytes:
    path = Path(cell["path"])
    return f"{path.name}\0{path.stat().st_size}".encode()

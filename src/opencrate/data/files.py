"""Image files in folders."""

from __future__ import annotations

from pathlib import Path

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, by suffix, sorted; hidden ones left out."""
    return sorted(
        item
        for item in folder.rglob("*")
        if item.suffix.lower() in IMAGE_SUFFIXES and item.is_file() and not item.name.startswith(".")
    )

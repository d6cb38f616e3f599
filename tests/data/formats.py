"""Small files of every format that images come in."""

import gzip
import io
from pathlib import Path

import numpy as np
from datasets import Dataset, Features
from PIL import Image


def images(count: int, size: tuple[int, int] = (12, 10), channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise, uint8 `(count, height, width, channels)`; no last axis for one channel."""
    shape = (count, *size, channels) if channels > 1 else (count, *size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """An array as PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_parquet(path: Path, pixels, labels, label_feature=None, image="image", label="label", **columns) -> Path:
    """A table of PNG bytes `{bytes, path}` and labels, with Hugging Face's features or plain ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": cell if isinstance(cell, bytes) else png(cell), "path": None} for cell in pixels]
    table = Dataset.from_dict({image: cells, label: list(labels), **columns})
    if label_feature is not None:
        table = table.cast(Features({**table.features, label: label_feature}))
    table.to_parquet(path)
    return path


def write_idx(path: Path, values: np.ndarray, data_type: int = 8) -> Path:
    """An array of 0 to 255 as an IDX file, compressed where the name ends in `.gz`."""
    values = values.astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes([0, 0, data_type, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_cifar(path: Path, pixels: np.ndarray, *labels: np.ndarray) -> Path:
    """Records of the CIFAR binary version: label bytes, then the red, green and blue planes."""
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    columns = [np.asarray(label, np.uint8)[:, None] for label in labels]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.concatenate([*columns, planes], axis=1).tobytes())
    return path

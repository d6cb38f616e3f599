"""Small image folders for tests: class k is an image with a bright band at row k."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bottom", "middle", "top")


def write_image(path: Path, label: int, seed: int, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> None:
    """One noisy image `(height, width)` whose bright third tells its class."""
    rng = np.random.default_rng(1000 * label + seed)
    height, width = size
    pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    third = max(1, height // 3)
    pixels[label * third : (label + 1) * third] += 180
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


def write_classes(root: Path, per_class: int, **options) -> Path:
    """`root/<class>/<n>.png`, `per_class` images each."""
    for label, name in enumerate(CLASSES):
        for number in range(per_class):
            write_image(root / name / f"{number}.png", label, number, **options)
    return root


FOLDER_OVERRIDES = (
    "model.size=null",
    "model.config.hidden_size=24",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=4",
    "model.config.patch_size=4",
    "model.config.pool=mean",
    "data.image_size=16",
    "data.resize_size=null",
    "augmentation.crop=none",  # the place of the bright band is the class
    "augmentation.flip=0",
    "training.num_train_epochs=1",
    "training.per_device_train_batch_size=8",
    "training.save_strategy=no",
)
"""Makes the `imagefolder` recipe small enough for a test; add `data.path=...`."""

VIT_OVERRIDES = (
    "model.type=vit",
    "model.config={hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 48, patch_size: 4}",
)
"""Put after FOLDER_OVERRIDES: transformers' ViT instead of a CRATE."""

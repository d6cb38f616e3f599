"""Tiny models and inputs, seeded, for the analysis tests."""

import torch

from opencrate import CrateConfig, CrateForImageClassification, CrateMAEConfig, CrateMAEForPreTraining
from opencrate.analysis.layers.registry import MEASURES
from opencrate.analysis.layers.result import LayerMeasures

NAMES = {index: f"class {index}" for index in range(7)}


def tiny_crate(seed: int = 0, **overrides) -> CrateForImageClassification:
    """Width 12, 3 layers, 2 subspaces, 4x6 images in 2x2 patches, 7 classes."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape = {"image_size": (4, 6), "patch_size": 2, "num_channels": 1, "id2label": NAMES}
    torch.manual_seed(seed)
    return CrateForImageClassification(CrateConfig(**(sizes | shape | overrides)))


def tiny_autoencoder(seed: int = 0, **overrides) -> CrateMAEForPreTraining:
    """Width 12, 2 + 2 layers, 2 subspaces, grey 4x6 images in 2x2 patches (2 rows of 3), half of them masked."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = {"image_size": (4, 6), "patch_size": 2, "num_channels": 1, "mask_ratio": 0.5}
    torch.manual_seed(seed)
    return CrateMAEForPreTraining(CrateMAEConfig(**(sizes | shape | overrides))).eval()


def tiny_images(count: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """One batch for `tiny_crate`, labels 0, 1, ..."""
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(count, 1, 4, 6, generator=generator), "labels": torch.arange(count) % 7}


def split(batch: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """The same images in smaller batches."""
    parts = {name: value.split(size) for name, value in batch.items()}
    return [dict(zip(parts, values)) for values in zip(*parts.values())]


def made_up_measures(**means: list[float]) -> LayerMeasures:
    """Measures of three images whose means over images are the given ones; the other measures are 1 everywhere."""
    layers = len(next(iter(means.values())))
    keys = [key for key in MEASURES if not key.startswith("released")]
    rows = {key: torch.tensor(means.get(key, [1.0] * layers), dtype=torch.float64) for key in keys}
    return LayerMeasures(eps=0.5, values={key: torch.stack([row - 0.25, row, row + 0.25]) for key, row in rows.items()})

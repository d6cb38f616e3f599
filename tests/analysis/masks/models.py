"""Tiny models whose tokens say their patch's colour, and pictures whose objects have one."""

import numpy as np
import torch
from PIL import Image

from opencrate import CrateConfig, CrateImageProcessor, CrateModel

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}


def colour_crate(**overrides) -> CrateModel:
    """Width 16, 2 layers, 2 subspaces of 8, 8x8 colour images in 4x4 patches."""
    torch.manual_seed(0)
    model = CrateModel(CrateConfig(**(SIZES | overrides))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def blind_crate(**overrides) -> CrateModel:
    """One that knows no positions, so that patches of one colour are alike wherever they lie."""
    return colour_crate(position="none", patch_embedding="conv", **overrides)


def processor() -> CrateImageProcessor:
    """Normalises to -1 ... 1."""
    return CrateImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)


def picture(height: int = 48, width: int = 64) -> tuple[Image.Image, np.ndarray]:
    """A red rectangle on a blue ground, its sides multiples of 4 pixels, and its mask."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[...] = (20, 40, 200)
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 12 * 4 : height // 6 * 4, width // 16 * 4 : width // 8 * 4] = True
    pixels[mask] = (230, 60, 10)
    return Image.fromarray(pixels), mask

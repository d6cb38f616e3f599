"""Random views, and all objectives under one signature."""

import torch
from torch import Tensor
from torch.nn import functional as F

from opencrate.training.ssl import dino_loss, draw_directions, lejepa_loss, simclr_loss, simdino_loss, vicreg_loss

GLOBAL, FEATURES = 2, 6


def views(V: int = 4, B: int = 8, p: int = FEATURES, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(V, B, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(z: Tensor) -> Tensor:
    return F.normalize(z, dim=-1)


def of_dino(z: Tensor, teacher: Tensor, **more):
    dtype = torch.promote_types(z.dtype, torch.float32)
    centre = torch.linspace(-0.2, 0.3, z.shape[-1], dtype=dtype, device=z.device)
    return dino_loss(z, teacher, centre, 0.3, 0.2, **more)


def of_simdino(z: Tensor, teacher: Tensor, **more):
    return simdino_loss(unit(z), unit(teacher), 0.4, 0.5, 0.3, **more)


def of_simdino_groups(z: Tensor, teacher: Tensor, **more):
    return simdino_loss(unit(z), unit(teacher), 0.4, 0.5, 0.3, "average", group_size=4, **more)


def of_lejepa(z: Tensor, teacher: Tensor, **more):
    return lejepa_loss(z, GLOBAL, 0.1, draw_directions(z.shape[-1], 16, 0, 0), **more)


def of_simclr(z: Tensor, teacher: Tensor, **more):
    return simclr_loss(z, GLOBAL, **more)


def of_vicreg(z: Tensor, teacher: Tensor, **more):
    return vicreg_loss(z, GLOBAL, **more)


OBJECTIVES = {
    "dino": of_dino,
    "simdino": of_simdino,
    "simdino in groups": of_simdino_groups,
    "lejepa": of_lejepa,
    "simclr": of_simclr,
    "vicreg": of_vicreg,
}
PARTS = {
    "dino": {"cross_entropy", "teacher_entropy", "batch_entropy"},
    "simdino": {"compression", "expansion", "expansion_share", "constant_share"},
    "simdino in groups": {"compression", "expansion", "expansion_share", "constant_share"},
    "lejepa": {"invariance", "sigreg"},
    "simclr": {"cross_entropy", "accuracy"},
    "vicreg": {"invariance", "variance", "covariance"},
}

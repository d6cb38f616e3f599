"""The heads that objectives of self-supervision are computed on; thrown away after training.

Weights are drawn from torch's global generator: truncated normal with standard deviation 0.02, biases 0. A linear map
before a batch normalisation has no bias: that would subtract it again, so its gradient would be rounding noise, of
which AdamW makes whole steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from .gathering import global_count, global_sum, process_count

INITIAL_STD = 0.02
NORMS = "parametrizations.weight.original0"  # where weight_norm keeps the norms of the rows


class ProjectionHead(nn.Module):
    """DINO's head: an MLP with GELU, L2 normalisation, a linear map with weight normalisation. [2104.14294]

    Without the last map it is SimDINO's, which ends with the unit-norm bottleneck [2502.10385].

    Args:
        in_features: width of the backbone's output.
        hidden: width between the layers of the MLP.
        bottleneck: width after it.
        layers: linear maps of the MLP, at least 1.
        out: K prototypes, or `None` for no last map.
        norm_last_layer: keep the norms of the last map's rows at 1, which is stabler, instead of learning them.
        batch_norm: `GlobalBatchNorm` between a hidden linear map and its GELU.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        out: int | None = None,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(in_features=in_features, hidden=hidden, bottleneck=bottleneck, layers=layers)
        self.mlp = mlp([in_features, *[hidden] * (layers - 1), bottleneck], nn.GELU, batch_norm)
        self.last_layer: nn.Module | None = None
        if out is not None:
            _check_sizes(out=out)
            last = nn.Linear(bottleneck, out, bias=False)
            nn.init.trunc_normal_(last.weight, std=INITIAL_STD)
            self.last_layer = weight_norm(last)
            norms = self.last_layer.get_parameter(NORMS)
            nn.init.ones_(norms)
            norms.requires_grad_(not norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        """Features `(..., in_features)` -> logits `(..., K)`, or unit-norm features `(..., bottleneck)` in float32."""
        unit = F.normalize(in_float32(self.mlp(features)), dim=-1)
        if self.last_layer is None:
            return unit
        return self.last_layer(unit.to(self.last_layer.get_parameter(NORMS).dtype))

    def last_parameters(self) -> list[nn.Parameter]:
        """Parameters of the last map, which DINO freezes for the first epoch; none without it."""
        return [] if self.last_layer is None else list(self.last_layer.parameters())


class Projector(nn.Module):
    """LeJEPA's, VICReg's and SimCLR's head: an MLP with batch normalisation and ReLU, its output not normalised.

    Args:
        in_features: width of the backbone's output.
        hidden: width between the layers.
        out: width of the output: 16 to 128 for LeJEPA [2511.08544], up to 8,192 for VICReg.
        layers: linear maps, at least 1.
        batch_norm: `GlobalBatchNorm` between a hidden linear map and its ReLU.
    """

    def __init__(
        self, in_features: int, hidden: int = 2048, out: int = 64, layers: int = 3, batch_norm: bool = True
    ) -> None:
        super().__init__()
        _check_sizes(in_features=in_features, hidden=hidden, out=out, layers=layers)
        self.mlp = mlp([in_features, *[hidden] * (layers - 1), out], nn.ReLU, batch_norm)

    def forward(self, features: Tensor) -> Tensor:
        """Features `(..., in_features)` -> `(..., out)`; all rows of a call share the batch's statistics."""
        return self.mlp(features)


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all rows of the global batch, `(..., features)`, in float32 or better.

    The statistics of training are `global_sum`s, so that one process and several compute the same; torch's
    SyncBatchNorm does that on accelerators only.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The same shape and dtype."""
        rows = in_float32(input).flatten(0, -2)
        with torch.autocast(input.device.type, enabled=False):
            several = self.training and process_count() > 1
            result = self._over_processes(rows) if several else super().forward(rows)
        return result.view(input.shape).to(input.dtype)

    def _over_processes(self, rows: Tensor) -> Tensor:
        count = global_count(len(rows), rows.device)
        if count < 2:
            raise ValueError("batch normalisation needs at least 2 rows in the global batch, got 1")
        mean = global_sum(rows.sum(0)) / count
        centred = rows - mean
        variance = global_sum(centred.square().sum(0)) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def mlp(widths: list[int], activation: type[nn.Module], batch_norm: bool) -> nn.Sequential:
    """Linear maps between the widths, with batch normalisation, if asked for, and the activation between them."""
    parts: list[nn.Module] = []
    for number, (inside, outside) in enumerate(pairwise(widths), start=1):
        if parts:
            parts += [GlobalBatchNorm(inside), activation()] if batch_norm else [activation()]
        last = number == len(widths) - 1
        linear = nn.Linear(inside, outside, bias=last or not batch_norm)
        nn.init.trunc_normal_(linear.weight, std=INITIAL_STD)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        parts.append(linear)
    return nn.Sequential(*parts)


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Remove the gradients, so that an optimizer leaves the parameters as they are: a step in which they are frozen."""
    for parameter in parameters:
        parameter.grad = None


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1, got {value!r}")

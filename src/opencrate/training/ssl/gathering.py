"""Sums and rows of the global batch: those of all processes, with gradients. The identity in a single process.

The gradient: every process computes the same global loss L and calls backward on L itself, with factor 1. The backward
pass of a global sum adds the gradients that the W processes send to it, so that a process's own parameters receive
W dL/dtheta through its own rows; DDP's mean over the processes then is dL/dtheta, what one process has. A loss that is
multiplied or divided by W beforehand is wrong by that factor, and so is a term that no global sum has passed through.

Processes may have different numbers of rows, at least one each. Backward passes communicate: all processes have to
call them, in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_reduce


def process_count() -> int:
    """Processes that share a global batch: those of the process group, or 1."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def global_sum(tensor: Tensor) -> Tensor:
    """The sum of the processes' tensors, all of one shape and dtype; differentiable as the module says."""
    return tensor if process_count() == 1 else all_reduce(tensor)


def row_counts(rows: int, device: torch.device) -> list[int]:
    """Every process's number of rows, in the order of their ranks."""
    if process_count() == 1:
        return [rows]
    own = torch.tensor([rows], device=device)
    counts = [torch.empty_like(own) for _ in range(process_count())]
    distributed.all_gather(counts, own)
    return torch.cat(counts).tolist()


def global_count(rows: int, device: torch.device) -> int:
    """The number of rows of the global batch."""
    return sum(row_counts(rows, device))


def global_rows(tensor: Tensor, dim: int = 0) -> Tensor:
    """The rows of all processes along `dim`, in the order of their ranks; differentiable as the module says.

    A sum in which each row is zero in all processes but its own: it allows different numbers of rows, which a gather
    does not, and it has the gradient of `global_sum`.
    """
    if process_count() == 1:
        return tensor
    counts = row_counts(tensor.shape[dim], tensor.device)
    before = sum(counts[: distributed.get_rank()])
    parts = []
    for rows in (before, sum(counts) - before - tensor.shape[dim]):
        shape = list(tensor.shape)
        shape[dim] = rows
        parts.append(tensor.new_zeros(shape))
    return global_sum(torch.cat([parts[0], tensor, parts[1]], dim))

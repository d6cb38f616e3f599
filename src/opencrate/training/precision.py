"""Whether a run computes in bfloat16, where its recipe leaves that to the processor; and where TF32 ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..calibration import has_half_instructions
from ..recipe.schema import Recipe
from ..store import runs


def decided(recipe: Recipe, resumed: Path | None = None) -> Recipe:
    """The recipe with `training.bf16` true or false: for `auto`, as in the run at `resumed`, else by the processor."""
    if recipe.training.bf16 != "auto":
        return recipe
    before = None
    if resumed is not None:
        folders = [folder for folder in (runs.partial_directory(resumed), resumed) if (folder / runs.RECIPE).is_file()]
        before = runs.read_recipe(folders[0]).training.bf16 if folders else None
    half = before if isinstance(before, bool) else has_bfloat16()
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, bf16=half))


def has_bfloat16() -> bool:
    """Whether the device that trains has instructions for bfloat16; where they are emulated, they are no gain."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_half_instructions()


@contextmanager
def precision_restored() -> Iterator[None]:
    """Give `torch.backends.fp32_precision`, which `training.tf32` sets for the whole process, back as it was."""
    before = torch.backends.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs
    try:
        yield
    finally:
        torch.backends.fp32_precision = before  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def without_tf32() -> Iterator[None]:
    """Products of float32 tensors are taken in float32 on a GPU too, whatever `training.tf32` says."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before

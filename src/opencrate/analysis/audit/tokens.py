"""The tokens that the audit looks at: one run of the model, token measures of every image and a sample to fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...evaluation.inputs import Batch
from ..maths.geometry import orthonormal_bases
from ..record.states import record, require_finite
from .fits import Sample, token_measures

TokenKind = Literal["normalised", "raw"]
TOKEN_KINDS = ("normalised", "raw")


@dataclass(frozen=True)
class LayerTokens:
    """One layer's sample of tokens, and the token measures of every image by their key."""

    sample: Sample
    measures: dict[str, Tensor]


@dataclass(frozen=True)
class Collected:
    """The tokens of every layer by its number, and what subspaces and tokens are, for readers."""

    layers: dict[int, LayerTokens]
    subspace_kind: str
    token_words: str


def collect(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_images: int,
    layers: Sequence[int] | None,
    kind: TokenKind,
    num_tokens: int,
    seed: int,
) -> Collected:
    """Run the model once; keep token measures of every image and a sample of its tokens, per layer."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[int, list[Tensor]] = {}
    measures: dict[int, list[dict[str, Tensor]]] = {}
    bases: dict[int, Tensor] = {}
    orthonormal: dict[int, Tensor] = {}
    images: list[Tensor] = []
    first_image, normalised, subspace_kind = 0, True, ""
    with _watched_norms(model) as norms:
        for states in record(model, batches, num_inputs=num_images, layers=layers):
            subspace_kind, shape = states.subspace_kind, states.layers[0].before.shape[:2]
            mask = torch.ones(shape, dtype=torch.bool) if states.mask is None else states.mask.cpu()
            positions = _positions(mask, -(-num_tokens // (num_images // 2)), generator)
            images.append(torch.repeat_interleave(torch.arange(len(mask)), positions.sum(1)) + first_image)
            for step in states.layers:
                number = step.layer
                seen = _matching_output(norms, step.before) if kind == "normalised" else step.before
                normalised = normalised and seen is not None
                tokens = (step.before if seen is None else seen).float().cpu()
                require_finite(tokens, f"layer {number}: its tokens hold")
                if number not in bases:
                    bases[number] = step.subspaces.detach().float().cpu()
                    orthonormal[number] = orthonormal_bases(bases[number]).float()
                kept.setdefault(number, []).append(tokens[positions])
                measures.setdefault(number, []).append(token_measures(tokens, mask, orthonormal[number]))
            norms.clear()
            first_image += len(mask)
    all_images = torch.cat(images)
    words = "LN(Z^ℓ)" if normalised else "Z^ℓ as it is, no LayerNorm stands before the subspaces"
    return Collected(
        layers={
            number: LayerTokens(
                sample=Sample(torch.cat(kept[number]), all_images, bases[number]),
                measures={key: torch.cat([part[key] for part in measures[number]]) for key in measures[number][0]},
            )
            for number in kept
        },
        subspace_kind=subspace_kind,
        token_words="Z^ℓ, no LayerNorm" if kind == "raw" else words,
    )


@contextmanager
def _watched_norms(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A list that every LayerNorm of the model appends its (input, output) to."""
    calls: list[tuple[Tensor, Tensor]] = []
    norms = [module for module in model.modules() if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))]

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        calls.append((given[0], out))

    hooks = [norm.register_forward_hook(note) for norm in norms]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _matching_output(calls: Sequence[tuple[Tensor, Tensor]], tokens: Tensor) -> Tensor | None:
    """The output of the LayerNorm that was given exactly these tokens."""
    for given, out in calls:
        if given is tokens or (given.shape == tokens.shape and torch.equal(given, tokens)):
            return out
    return None


def _positions(mask: Tensor, per_image: int, generator: torch.Generator) -> Tensor:
    """Choose up to `per_image` real tokens of every image at random, bool `(B, N)`."""
    order = torch.rand(mask.shape, generator=generator).masked_fill(~mask, 2.0).argsort(1).argsort(1)
    return mask & (order < per_image)

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
from ..record.states import LayerStep, record
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
    bases: dict[int, tuple[Tensor, Tensor]] = {}
    images: list[Tensor] = []
    first_image, normalised, subspace_kind = 0, True, ""
    with _watched_norms(model) as norms:
        for states in record(model, batches, num_inputs=num_images, layers=layers):
            steps = list(states.steps())
            subspace_kind = states.subspace_kind
            mask = _token_mask(steps[0])
            positions = _positions(mask, -(-num_tokens // (num_images // 2)), generator)
            images.append(torch.repeat_interleave(torch.arange(len(mask)), positions.sum(1)) + first_image)
            for step in steps:
                number = step.layer
                seen = _matching_output(norms, step.before) if kind == "normalised" else step.before
                normalised = normalised and seen is not None
                tokens = _finite(step.before if seen is None else seen, number)
                if number not in bases:
                    bases[number] = _bases(step.subspaces)
                kept.setdefault(number, []).append(tokens[positions])
                measures.setdefault(number, []).append(token_measures(tokens, mask, bases[number][1]))
            norms.clear()
            first_image += len(mask)
    all_images = torch.cat(images)
    return Collected(
        layers={
            number: LayerTokens(
                sample=Sample(torch.cat(kept[number]), all_images, bases[number][0]),
                measures={key: torch.cat([part[key] for part in measures[number]]) for key in measures[number][0]},
            )
            for number in kept
        },
        subspace_kind=subspace_kind,
        token_words=_token_words(kind, normalised),
    )


@contextmanager
def _watched_norms(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A list that every LayerNorm of the model appends its (input, output) to."""
    calls: list[tuple[Tensor, Tensor]] = []
    norms = [module for module in model.modules() if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))]
    hooks = [norm.register_forward_hook(lambda _, given, out: calls.append((given[0], out))) for norm in norms]
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


def _finite(tokens: Tensor, layer: int) -> Tensor:
    """The tokens as float32 on the CPU, if all are finite."""
    tokens = tokens.float().cpu()
    if not torch.isfinite(tokens).all():
        raise ValueError(
            f"layer {layer}: its tokens hold NaN or infinite values; the model's weights or its input are damaged, or "
            "training diverged"
        )
    return tokens


def _token_words(kind: TokenKind, normalised: bool) -> str:
    """What the tokens are, for readers."""
    if kind == "raw":
        return "Z^ℓ, no LayerNorm"
    return "LN(Z^ℓ)" if normalised else "Z^ℓ as it is, no LayerNorm stands before the subspaces"


def _token_mask(step: LayerStep) -> Tensor:
    """Which tokens are real, bool `(B, N)`."""
    return torch.ones(step.before.shape[:2], dtype=torch.bool) if step.mask is None else step.mask.bool().cpu()


def _positions(mask: Tensor, per_image: int, generator: torch.Generator) -> Tensor:
    """Choose up to `per_image` real tokens of every image at random, bool `(B, N)`."""
    order = torch.rand(mask.shape, generator=generator).masked_fill(~mask, 2.0).argsort(1).argsort(1)
    return mask & (order < per_image)


def _bases(subspaces: Tensor) -> tuple[Tensor, Tensor]:
    """U as it is, and its orthonormal bases."""
    subspaces = subspaces.detach().float().cpu()
    return subspaces, orthonormal_bases(subspaces).float()

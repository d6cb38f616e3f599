"""The states of a white-box model, recorded from its own forward: nothing here computes a layer again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..blocks import MSSA
from .inputs import Batch, evaluating, place, read_batches


@dataclass(frozen=True)
class LayerStep:
    """What goes in and out of one layer, for a batch of B images.

    Attributes:
        before: Z^ℓ `(B, N, d)`.
        projected: U^ᵀ LN(Z^ℓ) `(B, K, N, p)`.
        subspaces: U^ℓ `(K, d, p)`, as learned (not made orthonormal).
        compressed: Z^{ℓ+½} `(B, N, d)`.
        after: Z^{ℓ+1} `(B, N, d)`.
    """

    before: Tensor
    projected: Tensor
    subspaces: Tensor
    compressed: Tensor
    after: Tensor


@dataclass(frozen=True)
class LayerStates:
    """All states of L layers for one batch of B images; tokens are rows, token 0 is the class token.

    Attributes:
        hidden: L + 1 tensors `(B, N, d)`: the embedding, then every layer's output.
        compressed: L tensors `(B, N, d)`, Z^{ℓ+½}.
        projected: L tensors `(B, K, N, p)`, U^ᵀ LN(Z^ℓ).
        subspaces: L tensors `(K, d, p)`, U^ℓ.
        attentions: L tensors `(B, K, N, N)`, or `None` where they were not asked for.
        logits: `(B, C)`, or `None` for a model without a head.
    """

    hidden: tuple[Tensor, ...]
    compressed: tuple[Tensor, ...]
    projected: tuple[Tensor, ...]
    subspaces: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...] | None = None
    logits: Tensor | None = None

    @property
    def num_images(self) -> int:
        """B, the images in this batch."""
        return self.hidden[0].shape[0]

    def steps(self) -> Iterator[LayerStep]:
        """The layers one by one, first to last."""
        parts = (self.hidden[:-1], self.projected, self.subspaces, self.compressed, self.hidden[1:])
        for before, projected, subspaces, compressed, after in zip(*parts, strict=True):
            yield LayerStep(before, projected, subspaces, compressed, after)


def record(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_images: int | None = None,
    attentions: bool = False,
) -> Iterator[LayerStates]:
    """Run the model once per batch and yield its states; only one batch is held at a time.

    The model runs in evaluation mode without gradients and gets its mode back before each yield.

    Args:
        model: a CRATE model, with or without a head.
        batches: pixel values `(B, C, H, W)` or mappings with `pixel_values`.
        num_images: use this many images; `None` uses all.
        attentions: record the attention maps too (N x N numbers per head and layer).

    Raises:
        ValueError: the model has no subspaces; no images; fewer images than asked for.
    """
    modules = [module for module in model.modules() if isinstance(module, MSSA)]
    if not modules:
        raise ValueError(
            f"model={type(model).__name__}: has no MSSA block, so there are no subspaces to measure against; "
            "pass a CRATE model"
        )
    for fields in read_batches(batches, num_images):
        with evaluating(model):
            subspaces = tuple(module.bases().detach() for module in modules)
            outputs = model(
                place(fields["pixel_values"], model),
                output_hidden_states=True,
                output_compressed_states=True,
                output_projected_states=True,
                output_attentions=attentions,
            )
        yield LayerStates(
            hidden=tuple(outputs.hidden_states),
            compressed=tuple(outputs.compressed_states),
            projected=tuple(outputs.projected_states),
            subspaces=subspaces,
            attentions=tuple(outputs.attentions) if attentions else None,
            logits=getattr(outputs, "logits", None),
        )

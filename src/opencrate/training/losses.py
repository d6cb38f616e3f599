"""The training loss of a classifier: one cross-entropy for hard, smoothed and mixed labels, and CRATE's penalties."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..blocks import orthogonality_loss


def cross_entropy_sum(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats, summed over the images, in float32; a scalar.

    Args:
        logits: `(B, C)`.
        labels: class numbers `(B)`, int64, or probabilities `(B, C)`, as mixup and cutmix give them.
        smoothing: s in `(1 - s) labels + s / C`, for both forms.
    """
    return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)


def penalty(model: PreTrainedModel) -> Tensor | float:
    """The orthogonality penalties that a CRATE's configuration sets; 0 for every other model."""
    subspace = getattr(model.config, "subspace_penalty", 0.0)
    dictionary = getattr(model.config, "dictionary_penalty", 0.0)
    return orthogonality_loss(model, subspace, dictionary) if subspace or dictionary else 0.0

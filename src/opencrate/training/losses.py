"""The training loss of a classifier: one cross-entropy for hard, smoothed and mixed labels, and CRATE's penalties."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import orthogonality_loss


def cross_entropy_sum(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats of logits `(B, C)`, summed over the images, in float32; a scalar.

    Labels are class numbers `(B)`, int64, or probabilities `(B, C)`, as mixup and cutmix give them; the smoothing is
    s in `(1 - s) labels + s / C`, for both forms.
    """
    return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)


def penalty(model: nn.Module) -> Tensor | float:
    """The orthogonality penalties of a CRATE's configuration, also of one wrapped for several processes; else 0."""
    own = getattr(model, "module", model)
    config = getattr(own, "config", None)
    subspace = getattr(config, "subspace_penalty", 0.0)
    dictionary = getattr(config, "dictionary_penalty", 0.0)
    return orthogonality_loss(own, subspace, dictionary) if subspace or dictionary else 0.0

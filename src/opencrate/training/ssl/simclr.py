"""SimCLR: each image's two views find each other among all others. [2002.05709]"""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from .gathering import global_rows, global_sum, process_count, row_counts
from .inputs import checked_batch, checked_num_global, checked_number, checked_views, outside_autocast


@outside_autocast
def simclr_loss(
    views: Tensor, num_global: int = 2, temperature: float = 0.2, step: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The normalised-temperature cross-entropy (NT-Xent) of the first two views, over the global batch, in nats.

    With N images there are 2N rows. For each row, the softmax over the cosines with the 2N - 1 others, divided by the
    temperature, should be at the image's other view [2002.05709, Eq. 1]. All views but the first two are ignored.

    Args:
        views: features `(V, B, p)` of V >= 2 views, normalised here; B may differ between processes.
        num_global: global views, from 2 to V; for messages.
        temperature: above 0.
        step: optimizer step, for messages.

    Returns:
        The loss, and its parts without gradient: `cross_entropy` (the loss; ln(2N - 1) for chance) and `accuracy`, the
        share of rows whose nearest row is their image's other view.

    Raises:
        ValueError: a shape, temperature, or number of views or images that is not allowed.
        FloatingPointError: a feature is not finite; names view and step.
    """
    checked_number("temperature", temperature)
    views = checked_views("views", views, num_global, step)
    checked_num_global(num_global, len(views), least=2)
    images, B = checked_batch("views", views), views.shape[1]
    own = F.normalize(views[:2], dim=-1)
    rows = global_rows(own, 1).flatten(0, 1)  # (2 N, p), view by view
    similarity = own.flatten(0, 1) @ rows.T / temperature  # (2 B, 2 N)
    before = sum(row_counts(B, views.device)[: distributed.get_rank()]) if process_count() > 1 else 0
    first = before + torch.arange(B, device=views.device)
    itself, pair = torch.cat([first, first + images]), torch.cat([first + images, first])
    similarity = similarity.scatter(1, itself[:, None], -torch.inf)
    loss = global_sum(F.cross_entropy(similarity, pair, reduction="sum")) / (2 * images)
    right = (similarity.detach().argmax(1) == pair).sum().to(loss.dtype)
    return loss, {"cross_entropy": loss.detach(), "accuracy": global_sum(right) / (2 * images)}

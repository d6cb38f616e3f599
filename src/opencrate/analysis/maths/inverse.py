"""How well layers undo others: relative errors of encoding and decoding, for any callables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

Step = Callable[[Tensor], Tensor]
"""A layer, `(..., N, d)` -> `(..., N, d)`."""


@dataclass(frozen=True)
class InverseErrors:
    """Relative errors ‖g(f(Z)) − Z‖ / ‖Z‖ in the Frobenius norm over tokens and width, of each leading entry of Z.

    Attributes:
        per_layer: of layer ℓ at the state that enters it, `(L, ...)`.
        network: of the first ℓ layers, encoded and then decoded in reverse, one per requested depth ℓ, `(depths, ...)`.
    """

    per_layer: Tensor
    network: Tensor


def inverse_errors(
    encoders: Sequence[Step],
    decoders: Sequence[Step],
    Z: Tensor,
    directions: bool = False,
    depths: Sequence[int] | None = None,
) -> InverseErrors:
    """Encode and decode with any layers, such as a trained autoencoder's.

    Args:
        encoders, decoders: f_1 ... f_L, each `(..., N, d)` -> `(..., N, d)`, and g_1 ... g_L, meant to undo them.
        Z: tokens `(..., N, d)` that enter the first layer.
        directions: compare the tokens after scaling each to length 1, for layers that forget the length.
        depths: numbers of layers to encode and decode together; `None` is 1 ... L.

    Raises:
        ValueError: not as many decoders as encoders, or none.
    """
    if not encoders or len(encoders) != len(decoders):
        raise ValueError(f"decoders: {len(decoders)} for {len(encoders)} encoders; need one for each, at least one")
    states = [Z]
    for encode in encoders:
        states.append(encode(states[-1]))
    per_layer = [
        relative_error(decode(after), before, directions) for before, after, decode in zip(states, states[1:], decoders)
    ]
    network = []
    for depth in depths or range(1, len(encoders) + 1):
        back = states[depth]
        for decode in reversed(decoders[:depth]):
            back = decode(back)
        network.append(relative_error(back, Z, directions))
    return InverseErrors(torch.stack(per_layer), torch.stack(network))


def relative_error(a: Tensor, b: Tensor, directions: bool = False) -> Tensor:
    """‖a − b‖ / ‖b‖ over the last two axes, `(...)`, 0 where both are zero; of tokens of length 1 with `directions`."""
    if directions:
        a, b = normalize(a, dim=-1), normalize(b, dim=-1)
    size = torch.linalg.vector_norm(b, dim=(-2, -1)).clamp_min(torch.finfo(b.dtype).tiny)
    return torch.linalg.vector_norm(a - b, dim=(-2, -1)) / size

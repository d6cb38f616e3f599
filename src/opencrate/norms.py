"""Normalisation of tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._graph import autocasts


class TokenLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` of tokens; those of a half type stay in it under an accelerator's autocast too.

    Autocast itself would make float32 of them there, which takes as long as the layer's products; a CPU's does not.
    The statistics are float32 inside in any case.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., d)`` -> ``(..., d)``, in the type of the tokens."""
        kind = tokens.device.type
        half = tokens.dtype in (torch.bfloat16, torch.float16)
        if kind == "cpu" or not half or not autocasts(kind):
            return super().forward(tokens)
        with torch.autocast(kind, enabled=False):
            weight, bias = self.weight.to(tokens.dtype), self.bias.to(tokens.dtype)
            return F.layer_norm(tokens, self.normalized_shape, weight, bias, self.eps)

"""Normalisation layers. Both compute in fp32 whatever the weight's dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilewise import kernels
from tilewise.layers.slot import Slot, whole


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis; see `kernels.rms_norm`."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        """Create the weight (width,)."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return kernels.rms_norm(x, self.weight, self.eps)

    def slot(self, parameter: str) -> Slot:
        """Return the place of the weight."""
        return whole(getattr(self, parameter))


class LayerNorm(RMSNorm):
    """Layer norm with weight and bias. Source: Ba et al. 2016, "Layer Normalization", eq. 4."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        """Create weight and bias (width,)."""
        super().__init__(width, eps, dtype)
        self.bias = nn.Parameter(torch.empty(width, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

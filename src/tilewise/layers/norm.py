"""Normalisation layers. Both compute in fp32 whatever the weight's dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise import kernels
from tilewise.layers.slot import Layer, parameter


class RMSNorm(Layer):
    """Root-mean-square norm over the last axis; see `kernels.rms_norm`."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        """Create the weight (width,)."""
        super().__init__()
        self.eps = eps
        self.weight = parameter(width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return kernels.rms_norm(x, self.weight, self.eps)

    def add(self, stream: Tensor, branch: Tensor | None, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the norm of `stream` + `branch` * `scale`, and that sum; without a branch, of the stream itself.

        Shapes: stream, branch: (..., width) · scale: (width,) -> two (..., width)
        """
        if branch is None:
            return self(stream), stream
        return kernels.add_rms_norm(stream, branch, self.weight, self.eps, scale)


class LayerNorm(RMSNorm):
    """Layer norm with weight and bias. Source: Ba et al. 2016, "Layer Normalization", eq. 4."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        """Create weight and bias (width,)."""
        super().__init__(width, eps, dtype)
        self.bias = parameter(width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def add(self, stream: Tensor, branch: Tensor | None, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `RMSNorm.add`."""
        if branch is None:
            return self(stream), stream
        return kernels.add_layer_norm(stream, branch, self.weight, self.bias, self.eps, scale)

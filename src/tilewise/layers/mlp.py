"""The two feed-forward blocks: GELU between biased matrices, and SwiGLU without biases."""

import torch
from torch import Tensor, nn

from tilewise import kernels
from tilewise.layers.linear import ColumnLinear, RowLinear
from tilewise.parallel import SINGLE, Group


class GeluMLP(nn.Module):
    """Linear, GELU (erf), Linear; see `kernels.gelu`. The product's own epilogue adds the first bias."""

    def __init__(self, width: int, inner: int, out: int, dtype: torch.dtype) -> None:
        """Create both matrices and their biases."""
        super().__init__()
        self.up = ColumnLinear(width, {"up": inner}, dtype=dtype, bias=True)
        self.down = RowLinear(inner, out, dtype=dtype, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out)."""
        return self.down(kernels.gelu(self.up(x), may_overwrite=True))


class SwigluMLP(nn.Module):
    """Gate and up fused in one matrix, their product into down; see `kernels.silu_and_multiply`.

    The weight's method may make one launch of all that comes before down: a decode step has no time for two.
    """

    def __init__(self, width: int, inner: int, dtype: torch.dtype, group: Group = SINGLE) -> None:
        """Create this rank's share of `inner`."""
        super().__init__()
        self.gate_up = ColumnLinear(width, {"gate": inner, "up": inner}, dtype=dtype, group=group)
        self.down = RowLinear(inner, width, dtype=dtype, group=group)

    def forward(self, x: Tensor) -> Tensor:
        """(T, width) -> (T, width)."""
        return self.down(self.gate_up.forward_gated(x))
